from __future__ import annotations

import math

import pytest
import torch

from mm3dad.nets.losses import dice_loss, focal_loss, structural_similarity


def test_focal_loss_by_hand():
    probability, target = torch.tensor([0.9, 0.2]), torch.tensor([1, 1])
    expected = -(0.1**2 * math.log(0.9) + 0.8**2 * math.log(0.2)) / 2
    assert float(focal_loss(probability, target)) == pytest.approx(expected, rel=1e-5)
    assert float(focal_loss(1 - probability, 1 - target)) == pytest.approx(expected, rel=1e-5)
    plain = torch.nn.functional.binary_cross_entropy(probability, target.float())
    assert float(focal_loss(probability, target, 0.0)) == pytest.approx(float(plain), rel=1e-5)
    sure = focal_loss(torch.tensor([0.0, 1.0]), torch.tensor([1, 0]))
    assert bool(sure.isfinite())


def test_dice_loss_by_hand():
    probability, target = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([True, False, False])
    assert float(dice_loss(probability, target)) == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1))
    assert float(dice_loss(target.float(), target)) == 0 == float(dice_loss(torch.zeros(3), torch.zeros(3)))


def slow_similarity(one, other, window=11, sigma=1.5):
    """SSIM of one channel pixel by pixel."""
    height, width = one.shape
    found = torch.zeros(height, width)
    half = window // 2
    for i in range(height):
        for j in range(width):
            rows = range(max(0, i - half), min(height, i + half + 1))
            columns = range(max(0, j - half), min(width, j + half + 1))
            weight = torch.tensor([[math.exp(-((r - i) ** 2 + (c - j) ** 2) / (2 * sigma**2)) for c in columns] for r in rows])
            weight = weight / weight.sum()
            a, b = (values[rows.start : rows.stop, columns.start : columns.stop] for values in (one, other))
            ma, mb = (weight * a).sum(), (weight * b).sum()
            va, vb, cov = (weight * a * a).sum() - ma**2, (weight * b * b).sum() - mb**2, (weight * a * b).sum() - ma * mb
            found[i, j] = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    return found


def test_similarity_is_that_of_the_slow_loop():
    one, other = torch.rand(2, 2, 14, 9, generator=torch.Generator().manual_seed(0))
    fast = structural_similarity(one[:, None], other[:, None])
    for channel in range(2):
        torch.testing.assert_close(fast[channel, 0], slow_similarity(one[channel], other[channel]), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(structural_similarity(one[:, None], one[:, None]), torch.ones(2, 1, 14, 9))
