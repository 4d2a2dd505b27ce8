"""Features kept on disk are those that would be computed, or they are computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mm3dad.features.branches import PointBranch, RGBBranch
from mm3dad.features.cache import CachedBranch
from tests.methods.parts import make_sample


class Counting:
    """A branch that counts what it computes."""

    def __init__(self, branch):
        self.branch, self.count = branch, 0
        self.weights, self.blocks, self.to_map = branch.weights, branch.blocks, branch.to_map

    def describe(self, samples):
        self.count += len(samples)
        return self.branch.describe(samples)


@pytest.fixture(params=["rgb", "coarse", "xyz"])
def branch(request):
    if request.param == "xyz":
        return Counting(PointBranch("fpfh", "default", 64, 32, 16, 600, True, False))
    backbone, weights = ("test_vit", "random") if request.param == "coarse" else ("efficientnet_lite0", "default")
    return Counting(RGBBranch(backbone, (), weights, 64, True, "cpu", 0))


@pytest.fixture
def sample(tmp_path):
    (tmp_path / "000.png").write_bytes(b"image")
    whole = make_sample(0, size=(48, 96))
    return replace(whole, meta=replace(whole.meta, paths={"rgb": str(tmp_path / "000.png"), "gt": "nowhere.png"}))


def assert_same(one, other):
    assert one.grid == other.grid
    for name in ("features", "place", "centers"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None and b is None) or torch.equal(a, b), name


def test_the_second_time_reads_what_the_first_computed(branch, sample, tmp_path):
    cached = CachedBranch(branch, tmp_path / "cache", {"size": 64})
    first = cached.describe([sample])[0]
    again = CachedBranch(branch, tmp_path / "cache", {"size": 64}).describe([sample])[0]
    assert branch.count == 1
    assert_same(first, again)
    scores = torch.rand(len(again.features))
    assert torch.equal(cached.to_map(scores, again, sample), branch.branch.to_map(scores, first, sample))
    assert cached.weights == branch.weights and cached.blocks == branch.blocks


def test_what_changes_the_features_changes_the_key(branch, sample, tmp_path):
    cache = tmp_path / "cache"
    CachedBranch(branch, cache, {"size": 64}).describe([sample])
    CachedBranch(branch, cache, {"size": 128}).describe([sample])
    turned = replace(sample, meta=replace(sample.meta, id="other"))
    CachedBranch(branch, cache, {"size": 64}).describe([turned])
    assert branch.count == 3
    (tmp_path / "000.png").write_bytes(b"another image")
    CachedBranch(branch, cache, {"size": 64}).describe([sample])
    assert branch.count == 4


def test_samples_of_no_file_are_computed_each_time(branch, sample, tmp_path):
    cached = CachedBranch(branch, tmp_path / "cache", {})
    for _ in range(2):
        cached.describe([make_sample(0)])
    (tmp_path / "000.png").unlink()
    cached.describe([sample])
    assert branch.count == 3 and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"not tensors"])
def test_a_damaged_file_is_computed_again(branch, sample, tmp_path, damage):
    cached = CachedBranch(branch, tmp_path / "cache", {})
    first = cached.describe([sample])[0]
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    path.write_bytes(damage)
    assert_same(cached.describe([sample])[0], first)
    assert branch.count == 2
    assert_same(cached.describe([sample])[0], first)
    assert branch.count == 2


def test_a_batch_mixes_what_is_kept_and_what_is_not(branch, sample, tmp_path):
    cached = CachedBranch(branch, tmp_path / "cache", {})
    cached.describe([sample])
    found = cached.describe([make_sample(3), sample, make_sample(4)])
    assert branch.count == 3
    for patches, expected in zip(found, (make_sample(3), sample, make_sample(4)), strict=True):
        assert_same(patches, branch.branch.describe([expected])[0])
    assert cached.describe([]) == []
