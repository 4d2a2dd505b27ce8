"""Nearest-row scores and the re-weighted image score against their plain forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.scoring import nearest_scores, own_normalisation, reweight_score, shared_normalisation
from mm3dad.scoring.nearest import bank_statistics, support_score


def features(rows, columns, seed):
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reweight_by_hand(patches, bank, neighbors, divisor, epsilon):
    table = torch.cdist(patches, bank, compute_mode="donot_use_mm_for_euclid_dist")
    distance, index = table.min(1)
    worst = int(distance.argmax())
    score = distance[worst] / divisor
    row = torch.cdist(bank[index[worst]][None], bank, compute_mode="donot_use_mm_for_euclid_dist")[0]
    near = row.topk(neighbors, largest=False).indices[1:]
    root = math.sqrt(bank.shape[1])
    away = (patches[worst] - bank[near]).norm(dim=1) / divisor
    return float((1 - torch.exp(score / root) / (torch.exp(away / root).sum() + epsilon)) * score)


def test_nearest_scores_are_the_least_distances():
    patches, bank = features(40, 6, 0), features(70, 6, 1)
    distance, index = nearest_scores(patches, bank)
    table = torch.cdist(patches, bank)
    assert torch.allclose(distance, table.min(1).values) and torch.equal(index, table.argmin(1))
    same, where = nearest_scores(bank.float(), bank.float())
    assert torch.equal(same, torch.zeros(70)) and torch.equal(where, torch.arange(70))


def test_nearest_scores_of_one_row_and_of_no_patch():
    distance, index = nearest_scores(features(3, 6, 0), features(1, 6, 1))
    assert index.tolist() == [0, 0, 0] and distance.shape == (3,)
    assert nearest_scores(torch.zeros(0, 6), torch.zeros(2, 6))[0].shape == (0,)


@given(st.integers(0, 999), st.sampled_from([2, 3, 5]), st.sampled_from([1.0, 1000.0]), st.sampled_from([0.0, 1e-5]))
def test_reweight_is_the_published_formula(seed, neighbors, divisor, epsilon):
    patches, bank = 3 * features(12, 8, seed), 3 * features(20, 8, seed + 1000)
    found = reweight_score(patches, *nearest_scores(patches, bank), bank, neighbors, divisor, epsilon)
    assert found == pytest.approx(reweight_by_hand(patches, bank, neighbors, divisor, epsilon), rel=1e-9, abs=1e-12)


@given(st.integers(0, 999))
def test_the_weight_lies_between_one_half_and_one(seed):
    patches, bank = features(5, 4, seed), features(9, 4, seed + 1000)
    distance, index = nearest_scores(patches, bank)
    assert 0.5 * float(distance.max()) <= reweight_score(patches, distance, index, bank) < float(distance.max())


def test_reweight_survives_huge_distances():
    patches, bank = 1e5 * features(5, 4, 0), 1e5 * features(9, 4, 1)
    distance, index = nearest_scores(patches, bank)
    assert 0 < reweight_score(patches, distance, index, bank, epsilon=1e-5) <= float(distance.max())


def test_reweight_with_few_bank_rows():
    patches = features(5, 4, 0)
    single = features(1, 4, 1)
    distance, index = nearest_scores(patches, single)
    assert reweight_score(patches, distance, index, single) == pytest.approx(float(distance.max()))
    pair = features(2, 4, 1)
    distance, index = nearest_scores(patches, pair)
    assert reweight_score(patches, distance, index, pair) == pytest.approx(reweight_by_hand(patches, pair, 2, 1.0, 0.0))
    assert reweight_score(patches, distance, index, pair, neighbors=1) == pytest.approx(float(distance.max()))
    same = pair[:1].repeat(6, 1)
    assert reweight_score(same[:1], *nearest_scores(same[:1], same), same) == 0.0


def test_reweight_errors():
    patches, bank = features(5, 4, 0), features(9, 4, 1)
    distance, index = nearest_scores(patches, bank)
    for options in ({"neighbors": 0}, {"divisor": 0.0}, {"epsilon": -1.0}, {"divisor": float("nan")}):
        with pytest.raises(ConfigError, match="are needed"):
            reweight_score(patches, distance, index, bank, **options)
    with pytest.raises(ShapeError, match="fit together"):
        reweight_score(patches[:4], distance, index, bank)
    with pytest.raises(ShapeError, match="fit together"):
        reweight_score(patches, distance, index, bank[:, :3])
    with pytest.raises(DataError, match="finite"):
        reweight_score(patches, distance * float("nan"), index, bank)
    with pytest.raises(ShapeError):
        reweight_score(patches[:0], distance[:0], index[:0], bank)
    with pytest.raises(ShapeError):
        nearest_scores(patches * float("nan"), bank)


def test_normalisations():
    xyz, rgb = features(30, 4, 0) + 5, 9 * features(40, 6, 1)
    mean, deviation = float(xyz.mean()), float(rgb.std())
    assert shared_normalisation(xyz, rgb) == pytest.approx((mean, deviation, mean, deviation))
    assert own_normalisation(xyz, rgb) == pytest.approx((mean, float(xyz.std()), float(rgb.mean()), deviation))
    for function in (shared_normalisation, own_normalisation):
        for flat in (torch.ones(3, 2), torch.ones(1, 1)):
            with pytest.raises(DataError, match="different values"):
                function(xyz, flat)
        with pytest.raises(ShapeError):
            function(xyz[0], rgb)
        with pytest.raises(DataError, match="finite"):
            function(xyz * float("inf"), rgb)


def test_support_score_by_hand():
    bank = torch.tensor([[0.0], [1.0], [5.0]])
    patches, scores, index = torch.tensor([[0.5], [2.0]]), torch.tensor([1.0, 3.0]), torch.tensor([0, 1])
    away = torch.tensor([1.0, 2.0])  # of patch 2.0 to its row 1.0 and to the row 0.0 beside it
    expected = 3 * (1 - away.softmax(0)[0])
    assert support_score(patches, scores, index, bank, 2) == pytest.approx(float(expected))
    assert support_score(patches, scores, index, bank, 99) == pytest.approx(3 * float(1 - torch.tensor([1.0, 2, 3]).softmax(0)[0]))
    assert support_score(patches, scores, torch.zeros(2).long(), bank[:1]) == 3.0
    with pytest.raises(ConfigError, match="neighbors"):
        support_score(patches, scores, index, bank, 0)
    with pytest.raises(ShapeError, match="fit together"):
        support_score(patches[:1], scores, index, bank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_bank_statistics_equal_the_plain_ones_in_blocks(dtype):
    bank = (torch.randn(300, 7, generator=torch.Generator().manual_seed(0)) * 3 + 50).to(dtype)
    mean, deviation = bank_statistics("bank", bank)
    assert mean == pytest.approx(float(bank.double().mean()), rel=1e-12)
    assert deviation == pytest.approx(float(bank.double().std()), rel=1e-9)
    with pytest.raises(DataError, match="bank must hold different values to be normalised, got 6 equal ones"):
        bank_statistics("bank", torch.ones(2, 3))
