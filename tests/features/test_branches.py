"""The branches of `duet`: from samples to patches, and from patch scores back to pixels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import DataError, WeightsError
from mm3dad.features.branches import PointBranch, RGBBranch, augment, patch_grid
from mm3dad.features.weights import TABLE
from mm3dad.nets.point_transformer import PREFIX, PointTransformer
from mm3dad.types import Meta, Sample
from tests.methods.parts import make_cloud, make_sample


def make_rgb(aggregate=True, **options):
    return RGBBranch("efficientnet_lite0", (), "default", 64, aggregate, "cpu", 0, **options)


def make_points(**options):
    defaults = {"kind": "fpfh", "weights": "default", "image_size": 64, "centers": 32, "group_size": 16, "max_points": 600}
    return PointBranch(**(defaults | {"group": True, "aggregate": True} | options))


@pytest.fixture(scope="module")
def rgb():
    return make_rgb()


@pytest.fixture(scope="module")
def points():
    return make_points()


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (200, 70)])
def test_both_branches_share_one_grid(rgb, points, size):
    sample = make_sample(0, size=size)
    image, cloud = rgb.describe([sample])[0], points.describe([sample])[0]
    assert image.grid == cloud.grid == patch_grid(size, 64)
    assert image.features.shape == (image.grid[0] * image.grid[1], 152)
    assert torch.equal(image.place[:, 0] * image.grid[1] + image.place[:, 1], torch.arange(len(image.features)))
    assert cloud.features.shape == (32, 69) and cloud.features.dtype == torch.float32
    for axis in (0, 1):
        assert int(cloud.place[:, axis].min()) >= 0 and int(cloud.place[:, axis].max()) < cloud.grid[axis]


@pytest.mark.parametrize("name", ["rgb", "points"])
def test_a_batch_is_its_samples_bit_for_bit(request, name):
    branch = request.getfixturevalue(name)
    samples = [make_sample(0), make_sample(1, "both", size=(48, 96)), make_sample(2)]
    for sample, together in zip(samples, branch.describe(samples), strict=True):
        alone = branch.describe([sample])[0]
        assert torch.equal(alone.features, together.features) and torch.equal(alone.place, together.place)
    assert branch.describe([]) == []


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_maps_have_the_samples_size_and_keep_constants(rgb, points, size):
    sample = make_sample(0, size=size)
    for branch, seen in ((rgb, torch.ones(size, dtype=torch.bool)), (points, sample.valid)):
        patches = branch.describe([sample])[0]
        heat = branch.to_map(torch.full((len(patches.features),), 2.5), patches, sample)
        assert heat.shape == size and heat.dtype == torch.float32
        torch.testing.assert_close(heat[seen], torch.full_like(heat[seen], 2.5))
        assert bool((heat[~seen] == 0).all())


def test_maps_show_a_hot_patch_where_it_is(rgb, points):
    sample = make_sample(0)
    for branch in (rgb, points):
        patches = branch.describe([sample])[0]
        for hot in (0, len(patches.features) // 2):
            scores = torch.zeros(len(patches.features))
            scores[hot] = 1
            peak = int(branch.to_map(scores, patches, sample).argmax())
            row, column = patches.place[hot].tolist()
            assert abs(peak // 64 - 8 * row - 4) <= 8 and abs(peak % 64 - 8 * column - 4) <= 8


def test_switches_change_the_features(rgb, points):
    sample = make_sample(0)
    assert not torch.equal(make_rgb(aggregate=False).describe([sample])[0].features, rgb.describe([sample])[0].features)
    sample = make_sample(0, "dent")  # grouping follows the surface only where it is curved
    for option in ("group", "aggregate"):
        other = make_points(**{option: False}, group_size=64).describe([sample])[0].features
        assert not torch.equal(other, make_points(group_size=64).describe([sample])[0].features), option


def test_a_cloud_without_a_grid(points):
    sample = make_cloud(0)
    patches = points.describe([sample])[0]
    assert patches.grid == (1, 32) and torch.equal(patches.place[:, 1], torch.arange(32))
    heat = points.to_map(torch.ones(32), patches, sample)
    assert heat.shape == (1, 400) and bool(heat[sample.valid].isclose(torch.ones(())).all())


def test_bad_clouds_are_named(points):
    sample = make_sample(7)
    few = torch.full_like(sample.xyz, torch.nan)
    few[:, 10, 10:25] = sample.xyz[:, 10, 10:25]
    with pytest.raises(DataError, match=r"sample 'few': the cloud has 15 valid points, fewer than one group of 16"):
        points.describe([Sample(xyz=few, meta=Meta("few"))])
    with pytest.raises(DataError, match="sample 'blind': the cloud has no valid point"):
        points.describe([Sample(xyz=torch.full_like(few, torch.nan), meta=Meta("blind"))])


def test_point_mae_from_a_checkpoint_in_the_published_layout(tmp_path):
    torch.manual_seed(0)
    state = {f"{PREFIX}{key}": value for key, value in PointTransformer().state_dict().items()}
    torch.save({"base_model": state | {"MAE_decoder.norm.bias": torch.zeros(2)}}, tmp_path / "pretrain.pth")
    branch = make_points(kind="point_mae", weights=str(tmp_path / "pretrain.pth"), centers=8)
    sample = make_sample(0)
    first, again = branch.describe([sample])[0], branch.describe([make_sample(1), sample])[1]
    assert first.features.shape == (8, 3 * 384 + 3) and bool(first.features.isfinite().all())
    assert torch.equal(first.features, again.features)
    (said,) = branch.weights
    assert said["name"] == "point_mae" and len(said["sha256"]) == 64 and said["sha256"] != TABLE["point_mae"].sha256


def test_point_mae_without_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("MM3DAD_CACHE", str(tmp_path))
    for weights in ("default", str(tmp_path / "nowhere.pth")):
        with pytest.raises(WeightsError, match="expected a Point-MAE checkpoint at .* found none"):
            make_points(kind="point_mae", weights=weights)


@given(st.integers(8, 2000), st.integers(8, 2000), st.integers(32, 1024))
def test_patch_grid_follows_the_shape(height, width, image_size):
    rows, columns = patch_grid((height, width), image_size)
    scale = image_size / (height * width) ** 0.5
    assert rows % 4 == columns % 4 == 0
    assert abs(rows - height * scale / 8) <= 4 and abs(columns - width * scale / 8) <= 4


@pytest.mark.parametrize("mirror", [False, True])
def test_turning_four_times_is_the_identity(mirror):
    sample = make_sample(0, "both", size=(48, 64))
    turned = sample
    for _ in range(4):
        turned = augment(turned, 1)
    if mirror:
        turned = augment(augment(turned, 0, mirror=True), 0, mirror=True)
    for name in ("rgb", "xyz", "valid", "mask"):
        assert torch.equal(getattr(turned, name), getattr(sample, name)), name


def test_a_turn_moves_all_arrays_alike():
    sample = make_sample(0, "both", size=(48, 64))
    turned = augment(sample, 1, mirror=True)
    assert turned.size == (64, 48) and turned.label == 1 and turned.meta.id == f"{sample.meta.id}+1m"
    assert int(turned.valid.sum()) == int(sample.valid.sum()) and int(turned.mask.sum()) == int(sample.mask.sum())
    hot = sample.mask & sample.valid
    moved = turned.mask & turned.valid
    for name in ("rgb", "xyz"):
        before, after = (array[:, where] for array, where in ((getattr(sample, name), hot), (getattr(turned, name), moved)))
        torch.testing.assert_close(before.sum(1), after.sum(1))
    alone = augment(make_sample(0, modalities=("rgb",)), 2)
    assert alone.xyz is None and alone.valid is None


def test_the_eight_turns_differ():
    sample = make_sample(0, "both")
    turned = [augment(sample, quarter, mirror).rgb for quarter in range(4) for mirror in (False, True)]
    assert all(not torch.equal(a, b) for i, a in enumerate(turned) for b in turned[:i])


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_places_are_cells_of_one_grid_whatever_the_backbone(rgb, size):
    """A transformer with patches of 16 pixels covers every other cell of 8 pixels."""
    wide = RGBBranch("test_vit", (-1,), "random", 64, True, "cpu", 0)
    sample = make_sample(0, size=size)
    fine, coarse = rgb.describe([sample])[0], wide.describe([sample])[0]
    cells = patch_grid(size, 64)
    assert coarse.grid != cells and len(coarse.features) == coarse.grid[0] * coarse.grid[1]
    for axis in (0, 1):
        places = coarse.place[:, axis].unique()
        assert len(places) == coarse.grid[axis] and int(places.max()) < cells[axis]
        assert len(fine.place[:, axis].unique()) == cells[axis]
        widest = int(torch.cat([torch.tensor([-1]), places, torch.tensor([cells[axis]])]).diff().max())
        assert widest <= cells[axis] / coarse.grid[axis] + 1
