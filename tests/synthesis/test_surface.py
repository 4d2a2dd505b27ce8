from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.synthesis.surface import (
    bulge_points,
    find_region,
    measure_normal,
    published_height,
    region_radius,
    stretch_points,
)


def sheet(side=40, extent=0.1, z=0.6):
    """A square plate of `extent` metres seen by a camera `z` metres away."""
    line = torch.linspace(-extent / 2, extent / 2, side, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten(), torch.full((side * side,), z, dtype=torch.float64)], dim=1)


UP = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)


@given(st.integers(0, 1599), st.integers(2, 60), st.lists(st.floats(0.8, 1.2), min_size=3, max_size=3))
def test_the_seed_is_inside_its_patch_and_highest(seed, count, weights):
    points = sheet()
    region = find_region(points, seed, count, weights)
    moved = stretch_points(points, region, UP, 0.004)
    height = points[:, 2] - moved[:, 2]
    assert region[0] == seed and float(height[seed]) == pytest.approx(0.004) == float(height.max())
    touched = torch.zeros(len(points), dtype=torch.bool)
    touched[region] = True
    assert torch.equal(height > 0, touched) and float(height[region[-1]]) == pytest.approx(0.004 / count)
    assert bool((height[region].diff() < 0).all())


def test_the_stretch_is_a_paraboloid():
    """Rank grows with the squared radius: h = h_max (1 - r^2 / R^2)."""
    points = sheet(120)
    seed = 60 * 120 + 60
    region = find_region(points, seed, 288)
    radius = (points[region] - points[seed]).norm(dim=1)
    height = (points - stretch_points(points, region, UP, 0.02))[region, 2]
    expected = 0.02 * (1 - radius**2 / region_radius(points, seed, region) ** 2)
    assert float((height - expected).abs().max()) < 0.02 * 0.06


def test_the_published_height_is_that_of_the_sheet_and_depends_on_the_unit():
    """10 cm, 14,400 points: 10 mm at k = 144, 20 mm at k = 288; twice the scale, four times the height (trained sheet, 1.1)."""
    points = sheet(120)
    assert published_height(points, 144) == pytest.approx(0.0102, rel=0.02)
    assert published_height(points, 288) == pytest.approx(0.0203, rel=0.02)
    assert published_height(2 * points, 144) == pytest.approx(4 * published_height(points, 144))
    with pytest.raises(DataError, match="at least 2 points, got 1"):
        published_height(points[:1], 1)


def test_the_published_search_misses_its_seed():
    """With z near 0.6 m the weights move a tilted cloud by centimetres; about the seed they cannot (trained sheet, 1.1)."""
    points, generator = sheet(60), torch.Generator().manual_seed(0)
    points[:, 2] += 0.6 * points[:, 1]
    hits = {True: 0, False: 0}
    for _ in range(60):
        seed = int(torch.randint(len(points), (), generator=generator))
        weights = (torch.randint(80, 121, (3,), generator=generator) / 100).tolist()
        for published in hits:
            hits[published] += int(seed in find_region(points, seed, 50, weights, published=published))
    assert hits[False] == 60 and hits[True] < 36


def test_normals_face_the_sensor():
    points = sheet()
    torch.testing.assert_close(measure_normal(points, 820), UP)
    tilted = points @ torch.tensor([[1.0, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]], dtype=torch.float64).T
    assert float(measure_normal(tilted, 820) @ tilted[820]) < 0
    torch.testing.assert_close(measure_normal(points[:1], 0), -points[0] / points[0].norm())


@pytest.mark.parametrize("height", [0.003, -0.003])
def test_a_bulge_ends_without_an_edge_and_a_dent_goes_in(height):
    points = sheet(80)
    seed = 40 * 80 + 40
    moved, mask = bulge_points(points, seed, UP, 0.02, height)
    rise, radius = points[:, 2] - moved[:, 2], (points - points[seed]).norm(dim=1)
    assert float(rise[seed]) == pytest.approx(height) and torch.equal(mask, rise != 0)
    assert not bool(mask[radius >= 0.02].any()) and float(rise[radius > 0.019].abs().max()) < 1e-4
    assert bool(mask[radius < 0.0195].all())


def test_one_point_and_bad_input():
    one = torch.tensor([[0.0, 0.0, 0.5]])
    assert find_region(one, 0, 1).tolist() == [0] and region_radius(one, 0, torch.tensor([0])) == 0
    moved, mask = bulge_points(one, 0, UP.float(), 0.01, 0.002)
    assert mask.tolist() == [True] and moved[0, 2] == pytest.approx(0.498)
    assert moved.dtype == torch.float32
    with pytest.raises(DataError, match="no valid point"):
        find_region(one[:0], 0, 1)
    with pytest.raises(ShapeError, match=r"points must be \(N, 3\) metres, got \(3, 1\)"):
        find_region(one.T, 0, 1)
    for call in (lambda: find_region(one, 0, 2), lambda: find_region(one, 1, 1), lambda: bulge_points(one, 0, UP, 0.0, 1.0)):
        with pytest.raises(ConfigError, match="must"):
            call()


def test_duplicates_are_told_apart_by_number():
    points = torch.zeros(5, 3, dtype=torch.float64) + 0.5
    region = find_region(points, 3, 3)
    assert region.tolist() == [0, 1, 2]
    assert int((stretch_points(points, region, UP, 0.1) != points).any(1).sum()) == 3
