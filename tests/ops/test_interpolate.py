"""Interpolation from centres to points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ShapeError
from mm3dad.ops import three_interpolate
from mm3dad.ops.interpolate import three_interpolate_reference
from tests.ops.clouds import KINDS, make_cloud


def interpolate_reference(points, centers, features):
    rows = []
    for point in points.double().numpy():
        squared = ((centers.double().numpy() - point) ** 2).sum(axis=1)
        near = np.argsort(squared, kind="stable")[:3]
        weight = 1 / (squared[near] + 1e-8)
        rows.append(weight @ features.double().numpy()[near] / weight.sum())
    return np.array(rows)


def scene(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(*shape, generator=generator) for shape in ((50, 3), (12, 3), (12, 5)))


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 50.0]))
def test_equals_the_formula(seed, offset):
    points, centers, features = scene(seed)
    points, centers = points * 0.1 + offset, centers * 0.1 + offset
    found = three_interpolate(points, centers, features)
    np.testing.assert_allclose(found, interpolate_reference(points, centers, features), rtol=1e-4, atol=1e-6)


@given(st.floats(-100, 100))
def test_constants_are_kept_and_values_stay_between(value):
    points, centers, features = scene()
    constant = three_interpolate(points, centers, torch.full_like(features, value))
    torch.testing.assert_close(constant, torch.full((50, 5), value))
    found = three_interpolate(points, centers, features)
    assert bool((found >= features.amin(dim=0) - 1e-6).all() & (found <= features.amax(dim=0) + 1e-6).all())


def test_a_centre_keeps_its_feature_at_metric_scale():
    # Finding 1 of the golden README: float32 products are off by the size of the guard here.
    centers = torch.cartesian_prod(*[torch.arange(3) * 0.03 + 0.3] * 3)
    features = torch.rand(27, 5, generator=torch.Generator().manual_seed(0))
    # What the guard itself lets through: 1e-8 over 0.03 squared, from two neighbours.
    torch.testing.assert_close(three_interpolate(centers, centers, features), features, rtol=0, atol=2.5e-5)


def test_edges():
    points, centers, features = scene()
    torch.testing.assert_close(three_interpolate(points, centers[:1], features[:1]), features[:1].expand(50, 5))
    assert three_interpolate(points, centers[:2], features[:2]).isfinite().all()
    same = three_interpolate(torch.zeros(1, 3), torch.zeros(3, 3), torch.tensor([[0.0], [3.0], [6.0]]))
    torch.testing.assert_close(same, torch.tensor([[3.0]]))
    assert three_interpolate(points[:0], centers, features).shape == (0, 5)
    assert three_interpolate(points, centers, features.double()).dtype == torch.float64


@pytest.mark.gpu
def test_same_on_the_gpu():
    points, centers, features = scene()
    found = three_interpolate(points.cuda(), centers.cuda(), features.cuda()).cpu()
    torch.testing.assert_close(found, three_interpolate(points, centers, features))


def test_errors():
    points, centers, features = scene()
    with pytest.raises(ShapeError, match="one row per centre, got 11 rows for 12 centers"):
        three_interpolate(points, centers, features[1:])
    with pytest.raises(ShapeError, match=r"centers must be \(N, 3\)"):
        three_interpolate(points, centers[:, :2], features)
    with pytest.raises(ShapeError, match="centers must have at least 1 rows"):
        three_interpolate(points, centers[:0], features[:0])
    with pytest.raises(ShapeError, match="features must be finite"):
        three_interpolate(points, centers, features * torch.nan)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "groups"), [(1, 1), (7, 2), (40, 3), (300, 17), (900, 400)])
def test_native_reference_and_formula_agree(kind, number, groups):
    points, centers = make_cloud(kind, number), make_cloud(kind, groups, seed=1)
    features = make_cloud("random", groups * 7, seed=2).view(groups, 21)
    found = three_interpolate(points, centers, features)
    torch.testing.assert_close(found, three_interpolate_reference(points, centers, features), rtol=1e-12, atol=1e-12)
    if kind != "offset":
        np.testing.assert_allclose(found, interpolate_reference(points, centers, features), rtol=1e-9)


def test_gradient_of_the_features():
    points, centers, features = (tensor.double() for tensor in scene())
    for groups in (1, 2, 12):
        rows = features[:groups].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda rows, groups=groups: three_interpolate(points, centers[:groups], rows), (rows,))
        grad = torch.rand(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        (found,) = torch.autograd.grad(three_interpolate(points, centers[:groups], rows), rows, grad)
        (wanted,) = torch.autograd.grad(three_interpolate_reference(points, centers[:groups], rows), rows, grad)
        torch.testing.assert_close(found, wanted)


def test_threads_change_no_bit():
    points, centers = make_cloud("surface", 3000).float(), make_cloud("surface", 200, seed=1).float()
    features = make_cloud("random", 200 * 100, seed=2).view(200, 300).float().requires_grad_()
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = three_interpolate(points, centers, features)
            results.append((found, *torch.autograd.grad(found.square().sum(), features)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
