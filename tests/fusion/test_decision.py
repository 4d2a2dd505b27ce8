"""The decision layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.fusion.decision import fit_one_class


def make_vectors(n, seed=0, scale=(1.0, 1.0)):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, len(scale), generator=generator, dtype=torch.float64) + 0.3) * torch.tensor(scale, dtype=torch.float64)


def solve_dual(vectors, share):
    """The machine's dual as a quadratic programme: min |sum a_i x_i|^2 with 0 <= a_i <= 1 / (share n), sum a_i = 1."""
    x = vectors.numpy()
    gram, n = x @ x.T, len(x)
    found = minimize(
        lambda a: 0.5 * a @ gram @ a,
        np.full(n, 1 / n),
        jac=lambda a: gram @ a,
        bounds=[(0, 1 / (share * n))] * n,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: np.ones(n)},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    weights = found.x @ x
    return weights / np.linalg.norm(weights)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.73, 1.0])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.0, 4.0), (1.0, 2.0, 0.5)])
def test_equals_the_quadratic_programme(share, scale):
    vectors = make_vectors(23, seed=len(scale), scale=scale)
    np.testing.assert_allclose(fit_one_class(vectors, share), solve_dual(vectors, share), atol=2e-3)


def test_at_most_its_share_lies_behind_the_margin():
    vectors = make_vectors(400)
    projection = vectors @ fit_one_class(vectors, 0.5)
    margin = float(projection.sort().values[int(0.5 * 400)])
    assert float((projection < margin).double().mean()) <= 0.5


def test_repeats_and_ignores_the_order():
    vectors = make_vectors(200)
    first = fit_one_class(vectors)
    assert torch.equal(first, fit_one_class(vectors))
    np.testing.assert_allclose(first, fit_one_class(vectors.flip(0)), atol=1e-4)


def test_weights_are_not_negative_and_favour_the_larger_modality():
    # Why scores enter in units of what normal samples score: the larger numbers take the say, whatever they mean.
    found = fit_one_class(make_vectors(300, scale=(1.0, 10.0)).float())
    assert float(found.min()) >= 0 and float(found[1]) > 5 * float(found[0])
    even = fit_one_class(make_vectors(300))
    assert float(even.min()) > 0.6


def test_one_vector_zeros_and_duplicates():
    assert fit_one_class(torch.tensor([[3.0, 4.0]])).tolist() == pytest.approx([0.6, 0.8])
    assert fit_one_class(torch.tensor([[3.0, 4.0]]), 0.01).tolist() == pytest.approx([0.6, 0.8])
    assert fit_one_class(torch.zeros(5, 2)).tolist() == pytest.approx([0.5**0.5] * 2)
    assert fit_one_class(torch.tensor([[3.0, 4.0]]).repeat(7, 1)).tolist() == pytest.approx([0.6, 0.8])


def test_bad_input():
    with pytest.raises(ShapeError, match=r"non-empty \(n, K\), got \(0, 2\)"):
        fit_one_class(torch.zeros(0, 2))
    for bad in (float("nan"), -1.0, float("inf")):
        with pytest.raises(DataError, match="finite and >= 0"):
            fit_one_class(torch.tensor([[1.0, bad]]))
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match=r"share must lie in \(0, 1\]"):
            fit_one_class(torch.ones(2, 2), share)
