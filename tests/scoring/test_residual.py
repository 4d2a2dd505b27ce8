"""Residuals, histogram matching and likelihood maps: laws and bad input."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.scoring.residual import likelihood_map, match_histogram, match_references, take_residual


def test_a_feature_that_is_a_reference_leaves_nothing():
    references = torch.randn(20, 5)
    for cosine in (True, False):
        assert float(take_residual(references[[3, 7]], references, cosine).abs().max()) == 0


def test_more_references_never_raise_the_distance():
    features, references = torch.randn(30, 5), torch.randn(40, 5)
    sizes = [take_residual(features, references[:count], cosine=False, squared=False).norm(dim=1) for count in (1, 5, 20, 40)]
    for few, many in pairwise(sizes):
        assert bool((many <= few + 1e-6).all())


def test_cosine_forgets_the_length():
    features, references = torch.randn(30, 5), torch.randn(40, 5)
    assert torch.equal(match_references(5 * features, references), match_references(features, 0.1 * references))


def test_histogram_matching_ends_are_the_identity_and_the_target():
    values, target = torch.randn(12, 3), torch.randn(12, 3)
    torch.testing.assert_close(match_histogram(values, target, 1.0), values)
    moved = match_histogram(values, target, 0.0)
    torch.testing.assert_close(moved.sort(0).values, target.sort(0).values)
    assert torch.equal(moved.argsort(0), values.argsort(0))


def test_likely_cells_score_low():
    likelihood = torch.zeros(4, 4)
    likelihood[2, 2] = -9.0
    rare, probable = likelihood_map([likelihood, likelihood], [torch.full((4, 4), 0.25)] * 2, (16, 16), [0.0, 0.0], sigma=0.0)
    assert float(rare[0, 0]) == 0 and float(rare.max()) == pytest.approx(2, abs=0.4) and int(rare.argmax()) // 16 in (9, 10, 11)
    torch.testing.assert_close(probable, torch.full((16, 16), 0.25))


def test_bad_input():
    for call, error, text in (
        (lambda: match_references(torch.rand(3, 4), torch.rand(3, 5)), ShapeError, "one width"),
        (lambda: match_references(torch.rand(3, 4), torch.rand(0, 4)), ShapeError, "non-empty"),
        (lambda: match_histogram(torch.rand(3, 4), torch.rand(4, 4)), ShapeError, "one shape"),
        (lambda: match_histogram(torch.rand(3, 4), torch.rand(3, 4), 1.5), ConfigError, "alpha"),
        (lambda: likelihood_map([], [], (4, 4), []), ShapeError, "each level"),
    ):
        with pytest.raises(error, match=text):
            call()
