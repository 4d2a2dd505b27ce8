from __future__ import annotations

import json
import math

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.scoring import OperatingPoint, choose_by_f1, choose_by_rate, threshold_f1, threshold_for_rate
from mm3dad.types import Prediction


def make_scores(count=99):
    return torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_choose_by_rate():
    scores = make_scores()
    point = choose_by_rate(scores, 0.01, ("rgb",))
    assert point.threshold == threshold_for_rate(scores, 0.01) == float(scores.max())
    assert point.false_alarms == pytest.approx(0.01) and point.interval[0] < 0.01 < point.interval[1]
    assert list(point.normal_scores) == sorted(scores.tolist()) and point.pixel_threshold is None and point.recall is None


def test_false_alarms_of_fresh_normals_keep_the_promise():
    """Simulation through the whole choice: 300 calibration sets of 60 skewed scores, the rate counted on 20,000 fresh ones."""
    generator = torch.Generator().manual_seed(2)
    fresh = torch.randn(20000, generator=generator).exp().double()
    rates, inside = [], 0
    for _ in range(300):
        point = choose_by_rate(torch.randn(60, generator=generator).exp().double(), 0.05)
        rates.append(float((fresh > point.threshold).double().mean()))
        inside += point.interval[0] <= rates[-1] <= point.interval[1]
    assert sum(rates) / 300 <= 0.055
    assert inside / 300 == pytest.approx(0.95, abs=0.04)


def test_too_few_normals_are_an_error_with_both_cures():
    with pytest.raises(DataError, match=r"take at least 99 held-out normal samples, got 8; .* ask for 0\.1112, the lowest rate that 8"):
        choose_by_rate(make_scores(8), 0.01)
    assert choose_by_rate(make_scores(8), 0.1112).false_alarms <= 0.1112
    with pytest.raises(ConfigError, match="false_alarms must lie between"):
        choose_by_rate(make_scores(8), 0.0)


def test_choose_by_f1():
    scores, labels = torch.tensor([0.1, 0.2, 0.3, 0.7, 0.8]), torch.tensor([0, 0, 0, 1, 1])
    point = choose_by_f1(scores.double(), labels)
    assert point.threshold == threshold_f1(scores.double(), labels) and point.recall == 1 and point.false_alarms == 0
    assert point.interval[0] == 0 and point.interval[1] == pytest.approx(1 - 0.025 ** (1 / 3))
    with pytest.raises(DataError, match="needs normal and defective"):
        choose_by_f1(scores, torch.zeros(5))


def make_prediction(score=0.5, parts=("rgb",)):
    return Prediction(score, torch.zeros(2, 2), {f"{name}_map": torch.zeros(2, 2) for name in parts}, 7.0, False)


def test_judge_and_other_modalities():
    point = choose_by_rate(make_scores(19), 0.05, ("rgb",)).with_area([torch.rand(8, 8) for _ in range(5)], 0.1)
    high, low = point.judge(make_prediction(2.0)), point.judge(make_prediction(0.0))
    assert high.is_anomaly and not low.is_anomaly and high.calibrated and high.threshold == point.threshold
    assert high.p_value == 0.05 and low.p_value == 1.0 and high.pixel_threshold == point.pixel_threshold
    other = make_prediction(2.0, ("rgb", "xyz"))
    assert point.judge(other) is other


def test_round_trip_through_json():
    point = choose_by_rate(make_scores(19), 0.05, ("rgb", "xyz")).with_area([torch.rand(8, 8) for _ in range(5)], 0.1)
    assert OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict()))) == point


@pytest.mark.parametrize(
    "change",
    [{"threshold": None}, {"threshold": math.nan}, {"normal_scores": []}, {"alien": 1}, {"interval": None}, {"normal_scores": ["x"]}],
)
def test_a_damaged_point_is_an_error(change):
    state = json.loads(json.dumps(choose_by_rate(make_scores(19), 0.05).to_dict()))
    with pytest.raises(ModelError, match="run `mm3dad calibrate` again"):
        OperatingPoint.from_dict({**state, **change})
    with pytest.raises(ModelError, match="damaged"):
        OperatingPoint.from_dict("x")
