"""Similarity-weighted aggregation on maps and on surfaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.features.aggregate import aggregate_map, aggregate_surface


def aggregate_map_reference(features, degrees):
    C, h, w = features.shape
    reach = max(degrees) // 2
    padded = np.pad(features.numpy(), ((0, 0), (reach, reach), (reach, reach)))
    found = np.zeros((C, h, w))
    for i in range(h):
        for j in range(w):
            for degree in degrees:
                low, high = reach - degree // 2, reach + degree // 2 + 1
                window = padded[:, i + low : i + high, j + low : j + high].reshape(C, -1)
                weight = np.exp(-np.linalg.norm(window - padded[:, i + reach, j + reach, None], axis=0))
                found[:, i, j] += (window * weight).sum(axis=1) / weight.sum() / len(degrees)
    return found


def aggregate_surface_reference(features, centers, flat, degrees):
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    found = unit.copy()
    for g in np.flatnonzero(flat):
        order = np.argsort(((centers.numpy() - centers.numpy()[g]) ** 2).sum(axis=1), kind="stable")
        joined = []
        for degree in degrees:
            near = unit[order[:degree]]
            weight = np.exp(-np.linalg.norm(near - unit[g], axis=1))
            joined.append(weight @ near / weight.sum())
        found[g] = np.concatenate(joined).reshape(features.shape[1], len(degrees)).mean(axis=1)
    return found


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([(1, 3, 5), (1,), (3,), (5, 1), (3, 3)]))
def test_map_equals_the_formula(h, w, degrees):
    features = torch.randn(4, h, w, generator=torch.Generator().manual_seed(h * 7 + w), dtype=torch.float64)
    np.testing.assert_allclose(aggregate_map(features, degrees), aggregate_map_reference(features, degrees), atol=1e-12)


def test_map_of_degree_one_is_the_map():
    features = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(aggregate_map(features, (1,)), features)


def test_batch_equals_one_by_one_and_keeps_dtype():
    features = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(aggregate_map(features)[1], aggregate_map(features[1]))
    assert aggregate_map(features.half()).dtype == torch.float16


def test_an_odd_cell_keeps_its_features_among_like_ones():
    features = torch.ones(8, 7, 7)
    features[:, 3, 3] = 20.0
    found = aggregate_map(features)
    torch.testing.assert_close(found[:, 3, 3], features[:, 3, 3])
    torch.testing.assert_close(found[:, 2, 2], features[:, 2, 2])  # far enough from the border for these windows
    noisy = torch.ones(8, 7, 7) + 0.1 * torch.randn(8, 7, 7, generator=torch.Generator().manual_seed(0))
    assert float(aggregate_map(noisy)[:, 2:5, 2:5].std()) < 0.6 * float(noisy[:, 2:5, 2:5].std())


@given(st.integers(1, 20), st.sampled_from([(1, 3, 5), (1,), (2, 4)]))
def test_surface_equals_the_formula(G, degrees):
    generator = torch.Generator().manual_seed(G)
    features, centers = torch.randn(G, 8, generator=generator, dtype=torch.float64), torch.rand(G, 3, generator=generator)
    curvature = torch.rand(G, generator=generator) * 0.02
    expected = aggregate_surface_reference(features, centers, curvature.numpy() < 0.01, degrees)
    np.testing.assert_allclose(aggregate_surface(features, centers, curvature, degrees), expected, atol=1e-12)


def test_surface_without_curvature_is_all_flat():
    features, centers = torch.randn(9, 6), torch.rand(9, 3)
    assert torch.equal(aggregate_surface(features, centers), aggregate_surface(features, centers, torch.zeros(9)))
    curved = aggregate_surface(features, centers, torch.ones(9))
    torch.testing.assert_close(curved, torch.nn.functional.normalize(features, dim=1))


def test_surface_edges():
    assert aggregate_surface(torch.zeros(4, 6), torch.zeros(4, 3)).isfinite().all()
    torch.testing.assert_close(aggregate_surface(torch.ones(1, 4), torch.zeros(1, 3)), torch.full((1, 4), 0.5))


def test_errors():
    with pytest.raises(ConfigError, match=r"odd numbers of at least 1.*got \(1, 2\)"):
        aggregate_map(torch.zeros(1, 4, 4), (1, 2))
    with pytest.raises(ConfigError, match="degrees must be"):
        aggregate_map(torch.zeros(1, 4, 4), ())
    with pytest.raises(ShapeError, match="floating"):
        aggregate_map(torch.zeros(4, 4))
    with pytest.raises(ShapeError, match="torch.uint8"):
        aggregate_map(torch.zeros(1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="numbers of at least 1"):
        aggregate_surface(torch.zeros(4, 2), torch.zeros(4, 3), degrees=(0,))
    with pytest.raises(ShapeError, match=r"features must be floating \(G,C\)"):
        aggregate_surface(torch.zeros(4), torch.zeros(4, 3))
    with pytest.raises(ShapeError, match="G = 4 as in features, got"):
        aggregate_surface(torch.zeros(4, 2), torch.zeros(5, 3))
    with pytest.raises(ShapeError, match="curvature must be"):
        aggregate_surface(torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(5))
