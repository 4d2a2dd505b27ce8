"""Scale, thresholds and folds: laws rather than numbers."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, DataError, ModelError, ShapeError
from mm3dad.scoring import Calibration, fold_indices, held_out_numbers, threshold_f1, threshold_for_rate


def normals(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 2


def test_the_median_is_zero_and_the_quantile_one():
    values = normals(1001)
    scaled = Calibration.fit(values, 0.99).apply(values)
    assert float(scaled.min()) == 0.0
    assert (scaled == 0).double().mean() == pytest.approx(0.5, abs=0.01)
    assert (scaled >= 1).double().mean() == pytest.approx(0.01, abs=0.002)


@given(st.floats(0.01, 100), st.floats(0, 50))
def test_units_of_the_raw_scores_do_not_matter(unit, offset):
    values, tested = normals(200), normals(50, 1) * 3
    plain = Calibration.fit(values).apply(tested)
    assert torch.allclose(Calibration.fit(values * unit + offset).apply(tested * unit + offset), plain, rtol=1e-6, atol=1e-6)


def test_few_outliers_do_not_set_the_scale():
    values = normals(1000)
    spoilt = torch.cat([values, torch.full((3,), 1e6, dtype=torch.float64)])
    assert Calibration.fit(spoilt).scale == pytest.approx(Calibration.fit(values).scale, rel=0.05)


def test_scores_without_spread_still_have_a_unit():
    assert Calibration.fit(torch.zeros(10)) == Calibration(0.0, 1.0)
    assert Calibration.fit(torch.full((10,), 4.0)) == Calibration(4.0, 4.0)
    assert Calibration.fit(torch.tensor([2.0])) == Calibration(2.0, 2.0)


def test_apply_keeps_shape_and_dtype():
    scores = torch.rand(2, 3, 4)
    scaled = Calibration(0.5, 0.1).apply(scores)
    assert scaled.shape == scores.shape and scaled.dtype == torch.float32 and float(scaled.min()) == 0.0


def test_state_survives_json():
    fitted = Calibration.fit(normals(100))
    assert Calibration.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


@pytest.mark.parametrize(
    "state",
    [{}, {"location": 1.0}, {"location": 1.0, "scale": 0.0}, {"location": math.nan, "scale": 1.0}, {"location": 1.0, "scale": math.inf},
     {"location": "a", "scale": 1.0}, {"location": 1.0, "scale": 1.0, "extra": 2.0}, None],
)  # fmt: skip
def test_a_damaged_state_is_a_model_error(state):
    with pytest.raises(ModelError, match="damaged"):
        Calibration.from_dict(state)


def test_fit_errors():
    for wrong in (torch.zeros(0), torch.zeros(2, 2), torch.arange(4)):
        with pytest.raises(ShapeError):
            Calibration.fit(wrong)
    with pytest.raises(DataError, match="finite"):
        Calibration.fit(torch.tensor([1.0, math.nan]))
    for quantile in (0.5, 1.01, math.nan):
        with pytest.raises(ConfigError, match="quantile"):
            Calibration.fit(torch.rand(5), quantile)


def test_rate_takes_the_conformal_order_statistic():
    scores = torch.arange(1.0, 100.0)
    assert threshold_for_rate(scores.flip(0), 0.01) == 99.0
    assert threshold_for_rate(scores, 0.05) == 95.0
    assert threshold_for_rate(scores, 0.999) == 1.0
    assert threshold_for_rate(scores[:10], 0.01) == 10.0
    assert threshold_for_rate(torch.tensor([3.0]), 0.2) == 3.0


def test_rate_is_held_on_average():
    random = np.random.default_rng(0)
    alarms = [
        np.mean(random.exponential(size=400) > threshold_for_rate(torch.from_numpy(random.exponential(size=39)), 0.1)) for _ in range(400)
    ]
    assert np.mean(alarms) <= 0.105 and np.mean(alarms) > 0.09


def test_rate_errors():
    for rate in (0, 1, -0.1, math.nan):
        with pytest.raises(ConfigError, match="rate"):
            threshold_for_rate(torch.rand(5), rate)
    with pytest.raises(ShapeError):
        threshold_for_rate(torch.zeros(0), 0.1)
    with pytest.raises(DataError):
        threshold_for_rate(torch.tensor([math.inf]), 0.1)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=20))
def test_f1_threshold_is_the_best_of_all(pairs):
    scores, labels = torch.tensor([float(p[0]) for p in pairs]), torch.tensor([p[1] for p in pairs])
    if labels.all() or not labels.any():
        return
    threshold = threshold_f1(scores, labels)
    f1 = [2 * int((labels & (scores > cut)).sum()) / int(labels.sum() + (scores > cut).sum()) for cut in (threshold, *range(-1, 6))]
    assert f1[0] == max(f1)


def test_f1_threshold_lies_between_the_classes():
    assert threshold_f1(torch.tensor([0.0, 1.0, 3.0, 4.0]), torch.tensor([0, 0, 1, 1])) == 2.0
    constant = threshold_f1(torch.ones(4), torch.tensor([0, 0, 1, 1]))
    assert 0.999 < constant < 1.0
    close = torch.tensor([1.0, np.nextafter(1.0, 2.0)], dtype=torch.float64)
    assert threshold_f1(close, torch.tensor([0, 1])) == 1.0


def test_f1_threshold_errors():
    for labels in (torch.zeros(3), torch.ones(3)):
        with pytest.raises(DataError, match="normal and defective"):
            threshold_f1(torch.rand(3), labels)
    with pytest.raises(ShapeError, match="labels"):
        threshold_f1(torch.rand(3), torch.zeros(2))


@given(st.integers(2, 40), st.integers(2, 9))
def test_folds_share_out_every_sample_once(samples, folds):
    parts = fold_indices(samples, folds)
    assert len(parts) == min(samples, folds)
    assert sorted(torch.cat(parts).tolist()) == list(range(samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part.tolist() == sorted(part.tolist()) and part.dtype == torch.int64 for part in parts)


def test_fold_errors():
    with pytest.raises(DataError, match="at least 2 normal samples, got 1"):
        fold_indices(1)
    with pytest.raises(ConfigError, match="folds"):
        fold_indices(5, 1)


def test_held_out_numbers_are_spread_and_bounded():
    assert held_out_numbers(0) == held_out_numbers(1) == []
    assert held_out_numbers(2) == [0, 1] and held_out_numbers(200) == list(range(200))
    chosen = held_out_numbers(1000, 200)
    assert len(chosen) == 200 and chosen[0] == 0 and chosen[-1] == 999
    assert max(b - a for a, b in itertools.pairwise(chosen)) <= 6
