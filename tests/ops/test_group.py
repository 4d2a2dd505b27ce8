"""Iterative point grouping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import iterative_group, nearest_neighbors
from mm3dad.ops.group import iterative_group_reference
from tests.ops.clouds import make_cloud

SMALL = {"size": 16, "step": 6, "pool": 32}


def cloud(number=200, seed=0):
    return torch.rand(number, 3, generator=torch.Generator().manual_seed(seed)) * 0.1 + 0.5


def group_reference(points, center, size, step, pool):
    """Grow one curved group link by link, as the sheet describes it."""
    place = points.double().numpy()
    near = np.argsort(np.linalg.norm(place - place[center], axis=1), kind="stable")[:pool]
    group = list(near[:step])
    while len(group) < size:
        rest = [index for index in near if index not in group]
        links = sorted((np.linalg.norm(place[a] - place[b]), b) for a in group for b in rest)
        group += [end for _, end in links[: min(step, size - len(group))]]
    return group


@given(st.integers(0, 10**6))
def test_growth_equals_the_description(seed):
    points = cloud(60, seed)
    groups = iterative_group(points, torch.tensor([0, 7, 59]), curvature_threshold=0.0, **SMALL)
    for center, found in zip((0, 7, 59), groups.index.tolist(), strict=True):
        assert sorted(found) == sorted(group_reference(points, center, **SMALL))


def test_flat_centres_take_their_nearest_points():
    points = cloud()
    centers = torch.arange(40)
    groups = iterative_group(points, centers, curvature_threshold=1.0, **SMALL)
    assert torch.equal(groups.index, nearest_neighbors(points[centers], points, 16)[1])


def test_curvature_of_known_shapes():
    plane = cloud()
    plane[:, 2] = 0.5
    assert float(iterative_group(plane, torch.arange(9), **SMALL).curvature.max()) < 1e-12
    assert 0.01 < float(iterative_group(cloud(), torch.arange(9), **SMALL).curvature.mean()) <= 1 / 3
    # The centre itself does not count: one point beside a plane looks flat.
    plane[0, 2] += 0.01
    assert float(iterative_group(plane, torch.tensor([0]), **SMALL).curvature) < 1e-12
    assert float(iterative_group(torch.ones(40, 3), torch.tensor([0]), **SMALL).curvature) == 0


def test_growth_stays_on_its_side_of_a_gap():
    # Two bent sheets 4 mm apart, each with points every 1 mm.
    row = torch.arange(30) * 0.001
    sheet = torch.cartesian_prod(row[:10], row[:10], torch.zeros(1))
    sheet[:, 2] = 0.02 * sheet[:, 0] + 30 * sheet[:, 0] ** 2
    both = torch.cat([sheet, sheet + torch.tensor([0, 0, 0.004])])
    center = torch.tensor([45])
    options = {"size": 90, "step": 20, "pool": 180}
    ball = iterative_group(both, center, curvature_threshold=1.0, **options).index
    grown = iterative_group(both, center, curvature_threshold=0.0, **options).index
    assert int((ball >= 100).sum()) > 10
    assert int((grown >= 100).sum()) == 0


def test_moving_and_turning_the_cloud_keeps_groups_and_curvature():
    points = cloud().double()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    before, after = (iterative_group(place, torch.arange(30), **SMALL) for place in (points, points @ turn.T + 5))
    assert torch.equal(before.index.sort(dim=1).values, after.index.sort(dim=1).values)
    torch.testing.assert_close(before.curvature, after.curvature, rtol=1e-6, atol=1e-9)


def test_edges():
    points = cloud(20)
    groups = iterative_group(points, torch.tensor([3]), size=16, step=6, pool=256, curvature_threshold=0.0)
    assert groups.index.shape == (1, 16)
    assert len(iterative_group(points, torch.empty(0, dtype=torch.int64), **SMALL).index) == 0
    whole = iterative_group(points, torch.tensor([3]), size=20, step=20, pool=20)
    assert sorted(whole.index[0].tolist()) == list(range(20))
    same = iterative_group(torch.zeros(40, 3), torch.tensor([0, 1]), curvature_threshold=0.0, **SMALL)
    assert same.index.shape == (2, 16)
    line = torch.arange(40.0)[:, None] * torch.tensor([[1.0, 1, 0]])
    assert float(iterative_group(line, torch.tensor([20]), **SMALL).curvature) < 1e-12


@pytest.mark.parametrize("options", [SMALL, {"size": 30, "step": 4, "pool": 31}, {"size": 40, "step": 40, "pool": 64}, {}])
@pytest.mark.parametrize("kind", ["random", "surface", "outlier", "tiny numbers"])
def test_equals_the_torch_code(kind, options):
    # Duplicates and rounded points are left out: of equal links any may come first.
    points, centers = make_cloud(kind, 300), torch.arange(0, 300, 6)
    full = {"size": 128, "step": 80, "pool": 256} | options
    _, near = nearest_neighbors(points[centers], points, full["pool"])
    expected = iterative_group_reference(points, near, full["size"], full["step"], 0.02)
    found = iterative_group(points, centers, curvature_threshold=0.02, **options)
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.curvature, expected.curvature, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["duplicates", "lattice", "offset"])
def test_equal_links_give_a_group_that_the_description_allows(kind):
    points = make_cloud(kind, 60)
    for center, found in enumerate(iterative_group(points, torch.arange(60), curvature_threshold=0.0, **SMALL).index):
        assert torch.equal(found[:6], nearest_neighbors(points[center : center + 1], points, 6)[1][0])
        pool = nearest_neighbors(points[center : center + 1], points, 32)[1][0]
        group, size = found.tolist(), 6
        while size < 16:
            count = min(6, 16 - size)
            rest = pool[~torch.isin(pool, found[:size])]
            links = torch.cdist(points[found[:size]], points[rest], compute_mode="donot_use_mm_for_euclid_dist")
            nearest = dict(zip(rest.tolist(), links.amin(dim=0).tolist(), strict=True))
            limit = float(links.flatten().sort().values[count - 1])
            assert all(nearest[end] <= limit for end in group[size : size + count])
            size += count


def test_threads_change_no_bit():
    points, centers, threads = make_cloud("surface", 600), torch.arange(0, 600, 7), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = iterative_group(points, centers, curvature_threshold=0.0)
        torch.set_num_threads(2)
        together = iterative_group(points, centers, curvature_threshold=0.0)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone.index, together.index)
    assert torch.equal(alone.curvature, together.curvature)


@pytest.mark.gpu
def test_same_on_the_gpu():
    points, centers = cloud(2000), torch.arange(0, 2000, 20)
    found, expected = iterative_group(points.cuda(), centers.cuda()), iterative_group(points, centers)
    assert torch.equal(found.index.cpu().sort(dim=1).values, expected.index.sort(dim=1).values)
    torch.testing.assert_close(found.curvature.cpu(), expected.curvature)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"size": 201, "pool": 300}, ConfigError, "size must be 4 to 200, got 201; the cloud has too few points"),
        ({"step": 0}, ConfigError, "step must be 1 to 16, got 0"),
        ({"step": 17}, ConfigError, "step must be 1 to 16, got 17"),
        ({"pool": 15}, ConfigError, "pool must be at least 16, got 15"),
        ({"center_index": torch.tensor([200])}, ShapeError, "0 to 199, got 200 to 200"),
        ({"center_index": torch.tensor([-1, 3])}, ShapeError, "got -1 to 3"),
        ({"center_index": torch.tensor([1.0])}, ShapeError, r"center_index must be \(G,\) integers"),
        ({"points": torch.zeros(200, 4)}, ShapeError, r"points must be \(N, 3\)"),
    ],
)
def test_errors(change, error, text):
    with pytest.raises(error, match=text):
        iterative_group(**{"points": cloud(), "center_index": torch.tensor([0]), **SMALL, **change})
