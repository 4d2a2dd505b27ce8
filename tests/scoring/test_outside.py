"""The judgement whether a sample lies outside: its rate on normal samples, its edges, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.scoring.outside import find_strangest, judge_outside, judge_run


def test_counts_by_hand():
    held = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert judge_outside([2.5], [held], 0.2) == (3 / 5, False)
    assert judge_outside([4.0], [held], 0.2) == (2 / 5, False)  # as far as the farthest is not farther
    assert judge_outside([4.1], [held], 0.2) == (1 / 5, True)
    assert judge_outside([3.5], [held], 0.4) == (2 / 5, True)  # the fourth of five places may be exceeded by two in five
    assert judge_outside([0.0], [held], 0.2) == (1.0, False)


def test_the_strangest_modality_decides():
    held = torch.arange(9.0)
    chance, is_outside = judge_outside([3.0, 50.0], [held, held], 0.2)
    assert is_outside and chance == pytest.approx(2 / 10)
    assert judge_outside([3.0, 3.0], [held, held], 0.2) == (1.0, False)


@pytest.mark.parametrize("modalities", [1, 2])
def test_its_rate_on_normal_samples(modalities):
    """Over many drawn sets, normal samples are called outside at no more than the rate, and not far below for one modality."""
    generator = torch.Generator().manual_seed(0)
    called = chances = 0
    for _ in range(2000):
        draw = torch.rand(modalities, 60, generator=generator).square()
        chance, is_outside = judge_outside(draw[:, 0].tolist(), list(draw[:, 1:]), 0.1)
        called += is_outside
        chances += chance <= 0.1
    assert 0.07 < called / 2000 < 0.12 and called == chances  # three deviations of a share of 0.1 of 2000 are 0.02


def test_few_samples_ask_for_a_margin():
    held = torch.tensor([2.0, 1.0, 4.0])
    assert judge_outside([5.9], [held], 0.2) == (1 / 4, False) and judge_outside([6.1], [held], 0.2) == (1 / 4, True)
    assert judge_outside([4.1], [held], 0.25) == (1 / 4, True)  # three can promise a quarter


def test_equal_samples_have_no_outside_but_another_sample_has():
    held = torch.zeros(5)
    assert judge_outside([0.0], [held], 0.1) == (1.0, False) and judge_outside([1e-6], [held], 0.1) == (1 / 6, True)


def test_refusals():
    held = torch.arange(4.0)
    for gaps, sets in (([], []), ([1.0], [held, held])):
        with pytest.raises(ShapeError, match="one entry for each modality"):
            judge_outside(gaps, sets, 0.1)
    with pytest.raises(DataError):
        judge_outside([1.0], [torch.tensor([1.0, torch.nan])], 0.1)
    with pytest.raises(ConfigError, match="rate must be"):
        judge_outside([1.0], [held], 0.0)


def test_the_strangest_kind_counts_beside_its_median():
    held = {"gap": torch.tensor([1.0, 2.0, 3.0]), "condition": torch.tensor([10.0, 40.0, 20.0]), "redness": torch.zeros(3)}
    one, others = find_strangest({"gap": 3.0, "condition": 30.0, "redness": 9.0}, held, ("gap", "condition"))
    assert one == 1.5 and others.tolist() == [0.5, 2.0, 1.5]
    assert find_strangest({"gap": 3.0}, held, ("gap", "condition"))[1].tolist() == [0.5, 1.0, 1.5]  # a model from before
    one, others = find_strangest({"gap": 1e-6}, {"gap": torch.zeros(4)}, ("gap",))
    assert others.tolist() == [0.0] * 4 and 0 < one < np.inf
    with pytest.raises(ShapeError, match="expected gap or condition in measured and held, got redness and gap"):
        find_strangest({"redness": 1.0}, {"gap": torch.ones(2)}, ("gap", "condition"))


def test_a_run_that_moved_where_no_part_alone_tells():
    random = np.random.default_rng(0)
    normals = {"brightness": random.normal(0, 1, 40), "sharpness": random.normal(0, 1, 40)}
    parts = {"brightness": random.normal(1.2, 1, 20), "sharpness": random.normal(0, 1, 20)}
    chance, moved = judge_run(parts, normals, 0.05)
    lowest = min(mannwhitneyu(parts[name], normals[name]).pvalue for name in parts)
    assert moved and chance == pytest.approx(2 * lowest) and not judge_run(normals, normals, 0.05)[1]
    same = {"measured": [1.0] * 9}
    assert judge_run(same, {"measured": [1.0] * 40}, 0.05) == (1.0, False)


def test_the_rate_of_runs_said_to_have_moved():
    random = np.random.default_rng(1)
    told = 0
    for _ in range(600):
        parts, normals = ({name: random.random(count) for name in "ab"} for count in (8, 12))
        told += judge_run(parts, normals, 0.2)[1]
    assert 0.10 < told / 600 < 0.23  # at most a fifth, and not far below: three deviations are 0.05


def test_refusals_of_a_run():
    for parts, normals in (({}, {}), ({"a": [1.0]}, {"b": [1.0]})):
        with pytest.raises(ShapeError, match="must have the same quantities"):
            judge_run(parts, normals, 0.1)
    for values in ([], [np.nan], [np.inf, 1.0]):
        with pytest.raises(DataError, match="a must have finite values"):
            judge_run({"a": values}, {"a": [1.0]}, 0.1)
    with pytest.raises(ConfigError, match="rate must lie between"):
        judge_run({"a": [1.0]}, {"a": [1.0]}, 1.0)
