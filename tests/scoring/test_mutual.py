"""Mutual scores against three plain loops."""

from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.scoring import interval_mean, mutual, mutual_distances, mutual_scores


def features(N, P, C, seed=0):
    return torch.randn((N, P, C), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores_by_hand(values, fraction):
    N, P, _ = values.shape
    result = torch.empty(N, P, dtype=values.dtype)
    for i in range(N):
        for p in range(P):
            least = sorted(float((values[j] - values[i, p]).norm(dim=1).min()) for j in range(N) if j != i)
            count = max(1, int(fraction * (N - 1)))
            result[i, p] = sum(least[:count]) / count
    return result


@pytest.mark.parametrize("N", [2, 3, 8])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_scores_equal_plain_loops(N, fraction):
    values = features(N, 5, 4)
    assert torch.allclose(mutual_scores(values, fraction), scores_by_hand(values, fraction), atol=1e-12)


def test_blocks_change_nothing(monkeypatch):
    values = features(7, 6, 4)
    whole = mutual_distances(values)
    monkeypatch.setattr(mutual, "BLOCK", 2 * 6 * 6)
    assert torch.allclose(mutual_distances(values), whole, atol=1e-12)


def test_order_of_samples_changes_nothing():
    values = features(6, 5, 4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(mutual_scores(values[order]), mutual_scores(values)[order], atol=1e-12)


def test_float32_keeps_small_distances_beside_large_features():
    values = (features(4, 6, 8) * 1e-3 + 30).float()
    assert torch.allclose(mutual_scores(values), scores_by_hand(values.double(), 0.3).float(), rtol=1e-5, atol=0)
    same = torch.rand(1, 6, 8).repeat(3, 1, 1)
    assert torch.equal(mutual_scores(same), torch.zeros(3, 6))


def test_an_odd_patch_stands_out():
    values = features(1, 6, 4).repeat(5, 1, 1) + 0.01 * features(5, 6, 4, 1)
    values[2, 3] += 5
    scores = mutual_scores(values)
    assert int(scores.argmax()) == 2 * 6 + 3 and float(scores[2, 3]) > 5 * float(scores[2, :3].max())


def test_interval_mean_by_hand():
    rows = torch.tensor([[4.0, 1.0, 3.0, 2.0, 9.0, 9.0, 9.0]])
    assert interval_mean(rows).item() == 1.5
    assert interval_mean(rows, 0).item() == 1.0
    assert interval_mean(rows[:, :1]).item() == 4.0


def test_errors():
    with pytest.raises(DataError, match="transductive: it needs at least 2 samples"):
        mutual_scores(features(1, 5, 4))
    with pytest.raises(ShapeError, match="\\(N, P, C\\)"):
        mutual_scores(features(2, 5, 4)[0])
    with pytest.raises(ShapeError):
        mutual_scores(features(3, 0, 4))
    with pytest.raises(DataError, match="finite"):
        mutual_scores(features(3, 5, 4) * float("nan"))
    for fraction in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="fraction"):
            mutual_scores(features(3, 5, 4), fraction)


def wide_features(spread):
    """(5, 30, 256) in float32: patches of like parts, `spread` apart."""
    values = features(1, 30, 256, 5) + spread * features(5, 30, 256, 6)
    return values.float()


@pytest.mark.parametrize("spread", [0.3, 1e-3, 0.0])
def test_rough_products_change_nothing(monkeypatch, spread):
    """With every patch alike the exact product takes over; the distances are the same."""
    values = wide_features(spread)
    if spread == 0:
        values[:] = values[:, :1] + 1e-4 * features(5, 30, 256, 7).float()
    found = {}
    for is_rough in (False, True):
        monkeypatch.setattr(mutual, "ROUGH_WIDTH", 1 if is_rough else 10**6)
        found[is_rough] = mutual_distances(values)
    assert torch.allclose(found[True], found[False], rtol=1e-5, atol=0)
    assert torch.allclose(found[True].double(), mutual_distances(values.double()), rtol=1e-4, atol=0)


def test_near_patches_are_measured_directly():
    """Far from the origin and close to each other: the product alone would lose every digit."""
    values = features(3, 6, 8).float()
    values[1, :3] = values[0, 3:] + 1e-4 * features(1, 3, 8, 7)[0].float()
    exact = mutual_distances(values.double())
    assert float(exact[0, 3:, 0].max()) < 1e-3
    assert torch.allclose(mutual_distances(values).double(), exact, rtol=1e-3, atol=1e-7)
