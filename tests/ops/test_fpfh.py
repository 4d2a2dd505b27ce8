"""Fast point feature histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import estimate_normals, fpfh, nearest_neighbors
from mm3dad.ops.fpfh import fpfh_reference as fpfh_in_torch
from tests.ops.clouds import KINDS, make_cloud


def surface(number=150, seed=0):
    plane = torch.rand(number, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.1
    return torch.cat([plane, 0.5 + 0.01 * torch.sin(plane[:, :1] * 60) * torch.cos(plane[:, 1:] * 40)], dim=1)


def pair_angles(point, normal, other, other_normal):
    """The three angles of PCL, in its own words."""
    line = other - point
    length = np.linalg.norm(line)
    if length == 0:
        return 0.0, 0.0, 0.0
    line = line / length
    # PCL compares exactly; here, as in the op, a tie is left alone.
    if math.acos(min(1, abs(normal @ line))) > math.acos(min(1, abs(other_normal @ line))) + 1e-9:
        normal, other_normal, line = other_normal, normal, -line
    v = np.cross(line, normal)
    if np.linalg.norm(v) == 0:
        return 0.0, 0.0, 0.0
    v = v / np.linalg.norm(v)
    w = np.cross(normal, v)
    return math.atan2(w @ other_normal, normal @ other_normal), v @ other_normal, normal @ line


def fpfh_reference(points, normals, neighbors):
    distance, table = (value.numpy() for value in nearest_neighbors(points, points, min(neighbors, len(points))))
    points, normals = points.numpy(), normals.numpy()
    own = np.zeros((len(points), 33))
    for i, near in enumerate(table):
        for j in near[1:]:
            theta, alpha, phi = pair_angles(points[i], normals[i], points[j], normals[j])
            places = 11 * (theta + math.pi) / (2 * math.pi), 11 * (alpha + 1) / 2, 11 * (phi + 1) / 2
            for part, place in enumerate(places):
                own[i, 11 * part + min(10, max(0, math.floor(place)))] += 100 / (len(near) - 1)
    total = own.copy()
    for i, near in enumerate(table):
        mean = sum((own[j] / d**2 for j, d in zip(near[1:], distance[i][1:], strict=True) if d > 0), start=np.zeros(33))
        for part in range(3):
            bins = slice(11 * part, 11 * part + 11)
            if mean[bins].sum():
                total[i, bins] += 100 * mean[bins] / mean[bins].sum()
    return total


@settings(max_examples=5)
@given(st.integers(0, 10**6), st.integers(2, 60))
def test_equals_the_definition(seed, number):
    points = surface(number, seed)
    normals = torch.nn.functional.normalize(
        torch.randn(number, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )
    np.testing.assert_allclose(fpfh(points, normals, neighbors=20), fpfh_reference(points, normals, 20), atol=1e-9)


def test_blocks_join_without_a_seam():
    points = surface(300)
    np.testing.assert_allclose(fpfh(points, neighbors=9), fpfh_reference(points, estimate_normals(points), 9), atol=1e-9)


def test_histograms_are_full():
    found = fpfh(surface().float())
    torch.testing.assert_close(found.view(-1, 3, 11).sum(dim=2), torch.full((150, 3), 200.0))
    assert float(found.min()) >= 0


def test_moving_turning_and_scaling_with_given_normals_changes_nothing():
    points, normals = surface(), estimate_normals(surface())
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    turn = turn * torch.linalg.det(turn)  # a rotation, no mirror
    for moved, around in ((points + 3, normals), (points @ turn.T, normals @ turn.T), (points * 7, normals)):
        torch.testing.assert_close(fpfh(moved, around), fpfh(points, normals))


def test_order_of_points_does_not_matter():
    points, order = surface(), torch.randperm(150, generator=torch.Generator().manual_seed(0))
    normals = estimate_normals(points)
    torch.testing.assert_close(fpfh(points[order], normals[order]), fpfh(points, normals)[order])


def test_flipping_a_normal_matters():
    points, normals = surface(), estimate_normals(surface())
    flipped = normals.clone()
    flipped[0] *= -1
    assert not torch.allclose(fpfh(points, flipped)[0], fpfh(points, normals)[0])


def test_plane_fills_the_middle_bins():
    plane = surface()
    plane[:, 2] = 0.5
    assert fpfh(plane).nonzero()[:, 1].unique().tolist() == [5, 16, 27]


def test_edges():
    assert torch.equal(fpfh(torch.ones(1, 3)), torch.zeros(1, 33))
    same = fpfh(torch.ones(5, 3))  # no distance at all: own histograms only
    assert torch.equal(same.nonzero()[:, 1].unique(), torch.tensor([5, 16, 27]))
    doubled = torch.cat([surface(40), surface(40)])
    assert fpfh(doubled, neighbors=10).isfinite().all()
    line = torch.arange(40.0)[:, None] * torch.tensor([[1.0, 2, 3]])
    assert fpfh(line).isfinite().all()
    assert fpfh(surface() + 1e4).isfinite().all()
    assert fpfh(surface(2)).shape == (2, 33)
    assert fpfh(surface(), normal_neighbors=50, neighbors=10).shape == (150, 33)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "neighbors"), [(2, 5), (17, 20), (400, 3), (400, 100)])
def test_equals_the_torch_code_on_odd_clouds(kind, number, neighbors):
    points = make_cloud(kind, number)
    normals = torch.nn.functional.normalize(make_cloud("random", number, seed=1) - 0.5, dim=1)
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        cloud = points.to(dtype)
        expected = fpfh_in_torch(cloud, normals.to(dtype), 30, neighbors)
        torch.testing.assert_close(fpfh(cloud, normals.to(dtype), neighbors=neighbors), expected, rtol=0, atol=close)


@pytest.mark.parametrize("kind", ["surface", "lattice"])
def test_threads_change_no_bit(kind):
    cloud, threads = make_cloud(kind, 1500), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = fpfh(cloud), estimate_normals(cloud)
        torch.set_num_threads(2)
        together = fpfh(cloud), estimate_normals(cloud)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])


def test_own_normals_are_the_estimated_ones():
    # Up to the rounding that moves an angle across the edge of a bin.
    points = make_cloud("surface", 1500) + torch.tensor([0, 0, 0.5])
    found, expected = fpfh(points), fpfh_in_torch(points, None, 30, 100)
    assert float((found - expected).abs().amax(dim=1).gt(1e-6).double().mean()) < 0.01


@pytest.mark.gpu
def test_same_on_the_gpu():
    points = surface(2000)
    normals = estimate_normals(points)
    found = fpfh(points.cuda(), normals.cuda()).cpu()
    assert float((found - fpfh(points, normals)).abs().gt(1e-3).double().mean()) < 1e-3


def test_errors():
    points = surface()
    with pytest.raises(ShapeError, match="one row per point, got 149 rows for 150 points"):
        fpfh(points, points[1:])
    with pytest.raises(ShapeError, match=r"normals must be \(N, 3\)"):
        fpfh(points, points[:, :2])
    with pytest.raises(ConfigError, match="neighbors must be at least 2, got 1"):
        fpfh(points, neighbors=1)
    with pytest.raises(ConfigError, match="normal_neighbors must be at least 3"):
        fpfh(points, normal_neighbors=2)
    with pytest.raises(ShapeError, match="points must have at least 1 rows"):
        fpfh(torch.zeros(0, 3))
