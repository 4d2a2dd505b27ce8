import math

import numpy as np
import pytest
import torch

from mm3dad.data.clean import CleanConfig, clean_sample, find_plane_points, fit_plane, label_clusters
from mm3dad.errors import ConfigError, DataError
from mm3dad.types import Meta, Sample
from tests.data.trees import make_arrays

SMALL = CleanConfig(border=5, candidates=200)


def make_sample(size=64, seed=0, **changes):
    rgb, xyz, mask = make_arrays(size, seed, defective=True)
    arrays = {
        "rgb": torch.from_numpy(rgb).permute(2, 0, 1) / 255,
        "xyz": torch.from_numpy(xyz).permute(2, 0, 1).contiguous(),
        "mask": torch.from_numpy(mask) > 0,
        "meta": Meta(id="part"),
    }
    return Sample(**{**arrays, **changes})


def test_the_block_stays_and_the_table_goes():
    sample = make_sample()
    before = sample.xyz.clone()
    clean = clean_sample(sample, SMALL)
    block = torch.zeros(64, 64, dtype=torch.bool)
    block[17:48, 17:48] = True
    assert clean.size == (100, 100)
    assert torch.equal(clean.valid[18:82, 18:82], block)
    assert int(clean.valid.sum()) == int(block.sum())
    assert torch.equal(clean.xyz[:, 18:82, 18:82] * block, sample.xyz * block)
    assert float((clean.rgb * ~clean.valid).sum()) == 0
    assert torch.equal(clean.mask[18:82, 18:82], sample.mask)
    assert torch.equal(sample.xyz, before)


def test_padding_can_be_left_out():
    clean = clean_sample(make_sample(), CleanConfig(border=5, candidates=200, multiple=0))
    assert clean.size == (64, 64)


def test_cleaning_repeats_bit_for_bit():
    first, second = clean_sample(make_sample(), SMALL), clean_sample(make_sample(), SMALL)
    assert torch.equal(first.xyz, second.xyz)
    assert torch.equal(first.rgb, second.rgb)


def test_stray_points_are_dropped_and_holes_keep_their_colour():
    sample = make_sample()
    xyz = sample.xyz.clone()
    xyz[:, 8, 8] = torch.tensor([0.3, 0.3, 0.3])
    xyz[:, 30, 30] = 0
    clean = clean_sample(make_sample(xyz=xyz), CleanConfig(border=5, candidates=200, multiple=0))
    assert not bool(clean.valid[8, 8])
    assert float(clean.rgb[:, 8, 8].sum()) == 0
    assert not bool(clean.valid[30, 30])
    assert torch.equal(clean.rgb[:, 30, 30], sample.rgb[:, 30, 30])


def test_points_alone_are_cleaned_too():
    clean = clean_sample(make_sample(rgb=None, mask=None), SMALL)
    assert clean.rgb is None
    assert clean.mask is None


def test_a_flat_part_is_refused_with_a_reason():
    sample = make_sample()
    flat = sample.xyz.clone()
    flat[2] = 0.5
    with pytest.raises(
        DataError, match="take 100% of the valid points of sample 'part', expected at most 80%; a flat part is used as it is"
    ):
        clean_sample(make_sample(xyz=flat), SMALL)


def test_clouds_that_show_no_background():
    sample = make_sample()
    border = sample.xyz.clone()
    border[:, :5] = border[:, -5:] = 0
    border[:, :, :5] = border[:, :, -5:] = 0
    with pytest.raises(DataError, match="background is removed already"):
        clean_sample(make_sample(xyz=border), SMALL)
    with pytest.raises(DataError, match="is all zeros"):
        clean_sample(make_sample(xyz=torch.zeros(3, 64, 64)), SMALL)
    with pytest.raises(DataError, match="no organised cloud"):
        clean_sample(make_sample(xyz=None), SMALL)
    with pytest.raises(DataError, match="no organised cloud"):
        clean_sample(Sample(xyz=torch.rand(3, 1, 50), meta=Meta(organised=False)), SMALL)


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match="no cluster of 5000 points"):
        clean_sample(make_sample(), CleanConfig(border=5, candidates=200, cluster_points=5000))


@pytest.mark.parametrize("wrong", [{"border": 0}, {"drop_distance": -1.0}, {"max_removed": 1.5}, {"multiple": -1}, {"candidates": 0}])
def test_parameters_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CleanConfig(**wrong)


def test_fit_plane_finds_the_plane_among_outliers():
    random = torch.Generator().manual_seed(1)
    normal = torch.tensor([0.1, -0.2, 0.97], dtype=torch.float64)
    normal /= normal.norm()
    points = torch.rand(600, 3, generator=random, dtype=torch.float64)
    points[:400] -= (points[:400] @ normal - 0.4)[:, None] * normal
    points[:400] += 0.0005 * torch.randn(400, 3, generator=random, dtype=torch.float64)
    got, offset = fit_plane(points, 0.004, seed=3)
    assert float((got @ normal).abs()) > math.cos(math.radians(0.1))
    assert offset == pytest.approx(-0.4, abs=1e-3)
    assert torch.equal(fit_plane(points, 0.004, seed=3)[0], got)


def test_fit_plane_refuses_what_has_no_plane():
    line = torch.arange(9.0)[:, None].expand(-1, 3)
    for points in (torch.rand(2, 3), line, torch.ones(5, 3)):
        with pytest.raises(DataError, match="plane"):
            fit_plane(points, 0.01)
    exact = torch.tensor([[0.0, 0, 1], [1, 0, 1], [0, 1, 1]])
    normal, offset = fit_plane(exact, 0.01)
    assert normal.tolist() == pytest.approx([0, 0, 1])
    assert offset == pytest.approx(-1)


def slow_dbscan(points, eps, min_points):
    """Textbook DBSCAN; a point counts among its own neighbours."""
    near = ((points[:, None] - points[None]) ** 2).sum(-1) <= eps**2
    label, cluster = np.full(len(points), -1), -1
    for start in range(len(points)):
        if label[start] >= 0 or near[start].sum() < min_points:
            continue
        cluster += 1
        queue = [start]
        while queue:
            point = queue.pop()
            if label[point] >= 0:
                continue
            label[point] = cluster
            if near[point].sum() >= min_points:
                queue += list(np.flatnonzero(near[point]))
    return label


def test_clusters_equal_the_textbook():
    random = np.random.default_rng(0)
    points = np.concatenate((random.normal(0, 0.05, (60, 3)), random.normal(1, 0.05, (40, 3)), random.uniform(-3, 3, (10, 3))))
    got = label_clusters(points, 0.1, 8)
    assert np.array_equal(got >= 0, slow_dbscan(points, 0.1, 8) >= 0)
    assert got[got >= 0].max() == slow_dbscan(points, 0.1, 8).max()
    assert label_clusters(points[:0], 0.1, 8).shape == (0,)
    assert label_clusters(points[:1], 0.1, 8).tolist() == [-1]


def test_plane_points_are_valid_ones_only():
    sample = make_sample()
    sample.xyz[:, 0, 0], sample.valid[0, 0] = 0, False
    assert not bool(find_plane_points(sample, SMALL)[0, 0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"drop_distance": "abc"}, "drop_distance must be a number, got 'abc'"),
        ({"candidates": 1.5}, "candidates must be a whole number, got 1.5"),
        ({"border": True}, "border must be a whole number, got True"),
        ({"fit_distance": float("nan")}, "fit_distance must be positive and finite"),
        ({"cluster_distance": float("inf")}, "cluster_distance must be positive and finite"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_parameters_of_the_wrong_kind(wrong, message):
    with pytest.raises(ConfigError, match=message):
        CleanConfig(**wrong)
