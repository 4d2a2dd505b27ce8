"""The judgement whether a sample lies outside: its rate on normal samples, its edges, what it refuses."""

from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.scoring.outside import judge_outside


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
