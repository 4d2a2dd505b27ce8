"""Surface normals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import estimate_normals, nearest_neighbors
from mm3dad.ops.normals import fit_planes, fit_planes_reference
from tests.ops.clouds import make_cloud


def cloud(number=120, seed=0):
    return torch.rand(number, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.1 + 0.5


def normals_reference(points, neighbors):
    table = nearest_neighbors(points, points, min(neighbors, len(points)))[1].numpy()
    rows = []
    for point, near in zip(points.numpy(), table, strict=True):
        normal = np.linalg.svd(points.numpy()[near] - points.numpy()[near].mean(axis=0))[2][2]
        rows.append(-normal if normal @ point > 0 else normal)
    return np.array(rows)


@given(st.integers(0, 10**6))
def test_equals_a_plane_fit(seed):
    points = cloud(seed=seed)
    np.testing.assert_allclose(estimate_normals(points, 12), normals_reference(points, 12), atol=1e-5)


@pytest.mark.parametrize("kind", ["random", "surface", "offset", "tiny numbers"])
def test_equals_the_torch_code(kind):
    points = make_cloud(kind, 400)
    table = nearest_neighbors(points, points, 30)[1]
    expected = fit_planes_reference(points, table, (1.0, 2, 3))
    torch.testing.assert_close(fit_planes(points, table, (1.0, 2, 3)), expected, rtol=0, atol=1e-6)


def test_sphere_seen_from_outside():
    points = torch.nn.functional.normalize(torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    front = points[points[:, 2] < -0.3] * 0.05
    found = estimate_normals(front + torch.tensor([0, 0, 1.0]), 20)
    assert float((found * front / 0.05).sum(dim=1).min()) > 0.95


def test_viewpoint_turns_the_normals():
    plane = cloud()
    plane[:, 2] = 0.5
    torch.testing.assert_close(estimate_normals(plane), torch.tensor([0, 0, -1.0]).double().expand(120, 3))
    torch.testing.assert_close(estimate_normals(plane, viewpoint=(0, 0, 9)), torch.tensor([0, 0, 1.0]).double().expand(120, 3))


def test_grazing_views_still_have_a_sign():
    plane = cloud()
    plane[:, 2] = 0.0  # the sensor lies in the plane itself
    torch.testing.assert_close(estimate_normals(plane), torch.tensor([0, 0, -1.0]).double().expand(120, 3))
    torch.testing.assert_close(estimate_normals(plane.roll(1, dims=1)), torch.tensor([-1.0, 0, 0]).double().expand(120, 3))


@pytest.mark.parametrize(
    "points",
    [
        torch.ones(1, 3),
        torch.ones(2, 3),
        torch.zeros(5, 3),
        torch.arange(40.0)[:, None] * torch.tensor([[1.0, 2, 3]]),
        cloud().float() + 1e4,
    ],
    ids=["one", "two", "same", "line", "far"],
)
def test_edges_give_unit_vectors_that_repeat(points):
    found = estimate_normals(points)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(points)))
    assert torch.equal(found, estimate_normals(points))


def test_errors():
    with pytest.raises(ConfigError, match="neighbors must be at least 3, got 2"):
        estimate_normals(cloud(), 2)
    with pytest.raises(ShapeError, match="three coordinates"):
        estimate_normals(cloud(), viewpoint=(0, 0))
    with pytest.raises(ShapeError, match=r"points must be \(N, 3\)"):
        estimate_normals(torch.zeros(4, 2))
