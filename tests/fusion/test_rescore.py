"""Re-scoring of sets and of single samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.fusion import judge_against_neighbors, rescore


def unit_features(N, C, seed):
    values = torch.rand((N, C), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values / values.norm(dim=1, keepdim=True)


def rescore_by_hand(scores, features, neighbors):
    scores, features = scores.numpy(), features.numpy()
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    result = []
    for i in range(len(scores)):
        products = features @ features[i]
        parts = []
        for k in neighbors:
            near = np.argsort(-products)[:k]
            parts.append((products[near] * scaled[near]).sum() / products[near].sum())
        result.append(np.mean(parts))
    return np.array(result)


@given(st.integers(0, 9999), st.integers(2, 15), st.sampled_from([(1, 7), (3,), (2, 100)]))
def test_rescore_equals_plain_steps(seed, N, neighbors):
    features = unit_features(N, 6, seed)
    scores = torch.rand(N, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    assert np.allclose(rescore(scores, features, neighbors).numpy(), rescore_by_hand(scores, features, neighbors), atol=1e-12)


def test_one_neighbour_returns_the_stretched_score():
    scores = torch.tensor([4.0, 2.0, 3.0])
    assert torch.allclose(rescore(scores, torch.eye(3), (1,)), torch.tensor([1.0, 0.0, 0.5]))


def test_constant_scores_one_sample_and_weights_that_cancel():
    assert torch.equal(rescore(torch.full((4,), 2.0), unit_features(4, 3, 0).float()), torch.zeros(4))
    assert rescore(torch.tensor([5.0]), torch.ones(1, 3)).tolist() == [0.0]
    scores = torch.tensor([0.0, 1.0, 3.0])
    assert rescore(scores, torch.zeros(3, 2)).tolist() == pytest.approx([0.0, 1 / 3, 1.0])
    opposite = rescore(torch.tensor([0.0, 1.0]), torch.tensor([[1.0], [-1.0]]))
    assert opposite.tolist() == [0.0, 1.0]


def test_rescore_errors():
    scores, features = torch.rand(4), torch.rand(4, 3)
    for neighbors in ((), (0,), (1, -1)):
        with pytest.raises(ConfigError, match="neighbors"):
            rescore(scores, features, neighbors)
    for wrong in ((scores[:3], features), (scores[:0], features[:0]), (scores[:, None], features), (scores, features[0])):
        with pytest.raises(ShapeError):
            rescore(*wrong)
    with pytest.raises(DataError, match="finite"):
        rescore(scores * math.nan, features)
    with pytest.raises(DataError, match="finite"):
        rescore(scores, features * math.inf)


def test_judgement_by_hand():
    neighbours = torch.tensor([1.0, 3.0])
    assert judge_against_neighbors(2.0, neighbours, 1.0) == 1.0
    assert judge_against_neighbors(4.0, neighbours, 1.0) == pytest.approx(3.0)
    assert judge_against_neighbors(0.0, neighbours, 1.0) == pytest.approx(math.exp(-2))
    assert judge_against_neighbors(4.0, torch.tensor([1.0, 1.0]), 1.5, prior=4) == pytest.approx(1 + 3 / math.sqrt(4 * 1.5**2 / 6))


@given(st.integers(0, 9999), st.integers(1, 6), st.floats(0, 3))
def test_judgement_is_positive_and_keeps_the_order(seed, K, spread):
    neighbours = torch.rand(K, generator=torch.Generator().manual_seed(seed)) + 0.5
    judged = [judge_against_neighbors(score, neighbours, spread) for score in (0.0, 0.4, 0.9, 1.2, 1.6, 5.0)]
    assert min(judged) >= 0 and judged == sorted(judged)


def test_judgement_forgives_what_similar_normals_do():
    noisy, calm = torch.tensor([4.0, 6.0, 5.0]), torch.tensor([1.0, 1.1, 0.9])
    assert judge_against_neighbors(6.0, noisy, 1.0) < judge_against_neighbors(3.0, calm, 1.0)


def test_judgement_without_any_spread():
    assert judge_against_neighbors(4.0, torch.tensor([2.0]), 0.0) == 2.0
    assert judge_against_neighbors(3.0, torch.zeros(2), 0.0) == 4.0
    assert judge_against_neighbors(0.0, torch.zeros(2), 0.0) == 1.0


def test_judgement_errors():
    neighbours = torch.rand(3)
    with pytest.raises(ShapeError, match="at least one"):
        judge_against_neighbors(1.0, neighbours[:0], 1.0)
    with pytest.raises(ShapeError):
        judge_against_neighbors(1.0, neighbours[None], 1.0)
    with pytest.raises(DataError, match="finite"):
        judge_against_neighbors(math.nan, neighbours, 1.0)
    with pytest.raises(DataError, match="finite"):
        judge_against_neighbors(1.0, neighbours * math.nan, 1.0)
    for options in ((-1.0, 4.0), (math.nan, 4.0), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="are needed"):
            judge_against_neighbors(1.0, neighbours, *options)
