"""Exact nearest neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import nearest_neighbors, neighbors
from tests.ops.clouds import KINDS, make_cloud


def neighbors_reference(queries, points, k):
    """All distances, sorted by distance and then by index."""
    distance = np.sqrt(((queries.double().numpy()[:, None] - points.double().numpy()[None]) ** 2).sum(axis=2))
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, order, axis=1), order


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 4, 9]), st.integers(1, 40), st.booleans())
def test_equals_brute_force(seed, width, number, lattice):
    generator = torch.Generator().manual_seed(seed)
    points, queries = torch.rand(number, width, generator=generator), torch.rand(7, width, generator=generator)
    if lattice:
        points, queries = (points * 3).round(), (queries * 3).round()
    k = seed % number + 1
    distance, index = nearest_neighbors(queries, points, k)
    expected, order = neighbors_reference(queries, points, k)
    np.testing.assert_allclose(distance, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(index, order)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "k"), [(1, 1), (5, 5), (17, 3), (700, 1), (700, 40), (700, 200), (1500, 1500)])
def test_clouds_on_which_a_search_can_go_wrong(kind, number, k):
    cloud, others = make_cloud(kind, number), make_cloud(kind, 60, seed=1)
    queries = torch.cat([cloud[: 300 if k < 500 else 20], others, cloud[:1] * 3 - 5])
    distance, index = nearest_neighbors(queries, cloud, k)
    expected, order = neighbors_reference(queries, cloud, k)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(distance, expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("offset", "levels"), [(0, None), (1000, None), (0, 2), (-50, 3)])
def test_features_with_ties_and_large_offsets(offset, levels, dtype):
    generator = torch.Generator().manual_seed(7)
    points = torch.randn(2500, 6, generator=generator, dtype=dtype)
    points = (points if levels is None else (points * levels).round()) + offset
    queries = torch.cat([points[::50], points[::97] + 0.25])
    distance, index = nearest_neighbors(queries, points, 30)
    expected, order = neighbors_reference(queries, points, 30)
    np.testing.assert_allclose(distance, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(index, order)


@pytest.mark.parametrize("kind", ["surface", "lattice", "outlier"])
def test_threads_change_no_bit(kind):
    cloud, threads = make_cloud(kind, 1500), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = nearest_neighbors(cloud, cloud, 50)
        torch.set_num_threads(2)
        together = nearest_neighbors(cloud, cloud, 50)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])


@pytest.mark.parametrize("width", [3, 16])
def test_blocks_join_without_a_seam(width, monkeypatch):
    monkeypatch.setattr(neighbors, "QUERY_BLOCK", 10)
    monkeypatch.setattr(neighbors, "POINT_BLOCK", 64)
    points = torch.randn(1000, width, generator=torch.Generator().manual_seed(0))
    for k in (1, 5, 100):
        distance, index = nearest_neighbors(points[:55], points, k)
        expected, order = neighbors_reference(points[:55], points, k)
        np.testing.assert_array_equal(index, order)
        np.testing.assert_allclose(distance, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("width", [3, 16])
def test_far_from_the_origin(width):
    # The product form alone would lose every digit here.
    points = torch.randn(400, width, generator=torch.Generator().manual_seed(0)) * 0.01 + 100
    distance, index = nearest_neighbors(points[:50], points, 4)
    expected, order = neighbors_reference(points[:50], points, 4)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(distance, expected, rtol=1e-5, atol=1e-9)


def test_far_clusters_still_exact():
    # Slack of the product form is larger than all distances inside a cluster, so rows are searched again in float64.
    points = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)) * 1e-3
    points[300:] += 1000
    distance, index = nearest_neighbors(points[:40], points, 3)
    expected, order = neighbors_reference(points[:40], points, 3)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(distance, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("width", [3, 10])
def test_order_of_points_does_not_change_distances(width):
    points = torch.randn(300, width, generator=torch.Generator().manual_seed(2))
    shuffled = points[torch.randperm(300, generator=torch.Generator().manual_seed(3))]
    torch.testing.assert_close(nearest_neighbors(points, points, 6)[0], nearest_neighbors(points, shuffled, 6)[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("width", [3, 10])
def test_many_duplicates_come_by_index(width):
    points = torch.ones(200, width)
    distance, index = nearest_neighbors(points[:3], points, 30)
    assert torch.equal(index, torch.arange(30).expand(3, 30))
    assert not distance.any()


@pytest.mark.parametrize("width", [3, 10])
def test_edges(width):
    one = torch.ones(1, width)
    distance, index = nearest_neighbors(one, one, 1)
    assert (distance.tolist(), index.tolist()) == ([[0.0]], [[0]])
    distance, index = nearest_neighbors(torch.zeros(0, width), one, 1)
    assert distance.shape == index.shape == (0, 1)
    assert nearest_neighbors(one.double(), one, 1)[0].dtype == torch.float64


def test_coarse_products_do_not_cost_exactness():
    points = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = nearest_neighbors(points[:20], points, 3)[1]
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found, neighbors_reference(points[:20], points, 3)[1])


def test_a_bank_in_half_precision_is_searched_as_its_single_precision_form():
    generator = torch.Generator().manual_seed(0)
    points, queries = torch.randn(900, 24, generator=generator).half(), torch.randn(50, 24, generator=generator)
    for found, expected in zip(nearest_neighbors(queries, points, 4), nearest_neighbors(queries, points.float(), 4), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("count", [1, 2, 17, 300])
def test_threads_change_nothing(count, monkeypatch):
    points = torch.randn(300, 12, generator=torch.Generator().manual_seed(5))
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(nearest_neighbors(points[:40], points, count))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.gpu
@pytest.mark.parametrize("width", [3, 24])
def test_same_on_the_gpu(width):
    points = torch.randn(3000, width, generator=torch.Generator().manual_seed(1))
    distance, index = nearest_neighbors(points[:200].cuda(), points.cuda(), 8)
    expected, order = nearest_neighbors(points[:200], points, 8)
    assert torch.equal(index.cpu(), order)
    torch.testing.assert_close(distance.cpu(), expected)


def test_errors():
    points = torch.zeros(4, 3)
    with pytest.raises(ConfigError, match="k must be 1 to 4, got 5"):
        nearest_neighbors(points, points, 5)
    with pytest.raises(ConfigError, match="k must be 1 to 4, got 0"):
        nearest_neighbors(points, points, 0)
    with pytest.raises(ShapeError, match="same width, got 2 and 3"):
        nearest_neighbors(torch.zeros(4, 2), points, 1)
    with pytest.raises(ShapeError, match="queries must be finite"):
        nearest_neighbors(torch.full((1, 3), torch.nan), points, 1)
    with pytest.raises(ShapeError, match="points must have at least 1 rows"):
        nearest_neighbors(points, torch.zeros(0, 3), 1)
    with pytest.raises(ShapeError, match="one device, got queries on meta, points on cpu"):
        neighbors.check_same_device(queries=torch.zeros(1, 3, device="meta"), points=points)
