"""The learned metric's parts beside slow formulas, their laws and bad input."""

from __future__ import annotations

import math

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.fusion.metric import (
    consistency_loss,
    encode_direction,
    fuse_distances,
    hinge_loss,
    margin_loss,
    mismatch_loss,
    pick_rank,
    scale_loss,
    separation_loss,
)
from mm3dad.nets.scale_net import ScaleNet


def test_direction_forgets_the_distance_unless_it_is_tiny():
    start = torch.randn(4, 6)
    away = torch.randn(4, 6)
    torch.testing.assert_close(encode_direction(start + away, start), encode_direction(start + 3 * away, start), rtol=1e-4, atol=1e-5)
    assert encode_direction(start, start).abs().max() == 0
    assert float(encode_direction(start + 1e-5 * away, start).norm(dim=1).max()) < 1


def test_without_scales_the_fused_distance_is_the_mean():
    distances = torch.rand(5, 3, 2)
    torch.testing.assert_close(fuse_distances(distances, torch.ones_like(distances), ScaleNet(4, 3, 2, 2).shares), distances.mean(2))


def test_net_keeps_its_ranges():
    net = ScaleNet(6, 8, 4, 4).eval()
    scales = net(100 * torch.randn(50, 6), 100 * torch.randn(50, 6))
    assert float(scales.detach().min()) >= 1 / math.e - 1e-6 and float(scales.detach().max()) <= math.e + 1e-6
    net.balance.data = torch.tensor([5.0, -1.0])
    assert float(net.shares.sum().detach()) == pytest.approx(1) and float(net.shares.min().detach()) > 0


def test_rules():
    fused = torch.tensor([[3.0, 1.0, 5.0]])
    assert [float(pick_rank(fused, rule)) for rule in ("min", "max", "mean", "nearest")] == [1, 5, 3, 3]


def slow_separation(fused, is_normal, bound):
    total = 0.0
    for distance, normal in zip(fused.tolist(), is_normal.tolist(), strict=True):
        square = distance**2
        if normal:
            total += min(3, max(0.33, square**2)) * square
        else:
            total += min(3, max(0.33, (square + 1e-5) ** -2)) * max(0.0, 1 / (square + 1e-5) - 1 / bound)
    return total / len(fused)


def test_separation_is_its_formula():
    fused, is_normal = torch.rand(40, dtype=torch.float64) * 3, torch.rand(40) > 0.5
    assert float(separation_loss(fused, is_normal, 4.0)) == pytest.approx(slow_separation(fused, is_normal, 4.0))


def test_separated_patches_cost_nothing_in_the_margin():
    is_normal = torch.tensor([True, True, False])
    assert float(margin_loss(torch.tensor([0.1, 1.0, 1.1]), is_normal)) == 0
    assert float(margin_loss(torch.tensor([0.1, 1.0, 0.9]), is_normal)) == pytest.approx(2 * 0.19 / 3, rel=1e-5)
    for kind in (torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)):
        assert float(margin_loss(torch.rand(3), kind)) == 0


def test_hinge_is_its_formula():
    fused, is_normal = torch.tensor([0.5, 2.0, 1.0, 3.0]), torch.tensor([True, True, False, False])
    assert float(hinge_loss(fused, is_normal, 4.0)) == pytest.approx((0.25 + 4 + 3 + 0) / 4)


def test_a_quantile_below_one_forgives_the_highest_normal_patches():
    fused, is_normal = torch.cat([torch.ones(99), torch.tensor([9.0, 4.0])]), torch.arange(101) < 100
    assert float(margin_loss(fused, is_normal)) > 0
    # Only the one patch beyond the anomalous one overlaps: (81 - 16) over a scale of 1.
    assert float(margin_loss(fused, is_normal, 0.9)) == pytest.approx(65 / 101, rel=1e-5)


def test_scales_of_one_kind_alone():
    top = torch.full((3, 2), math.e)
    for loss in (scale_loss(top, torch.zeros(3, dtype=torch.bool)), mismatch_loss(top)):
        assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(scale_loss(torch.ones(3, 2), torch.ones(3, dtype=torch.bool))) == 0


def test_a_consistent_order_costs_nothing():
    distances = torch.arange(1.0, 6.0)[None, :, None].expand(4, 5, 2)
    assert float(consistency_loss(distances.mean(2), distances)) == 0
    assert float(consistency_loss(distances.mean(2).flip(1), distances)) > 0


def test_bad_input():
    good, kinds = torch.rand(4), torch.tensor([True, True, False, False])
    for call, error, text in (
        (lambda: encode_direction(torch.rand(3, 2), torch.rand(3, 4)), ShapeError, "one shape"),
        (lambda: encode_direction(torch.rand(3, 2) * torch.nan, torch.rand(3, 2)), DataError, "finite"),
        (lambda: fuse_distances(torch.rand(3, 2), torch.rand(3, 1), torch.ones(2)), ShapeError, "shares"),
        (lambda: pick_rank(torch.rand(3, 2), "median"), ConfigError, "min, max, mean or nearest"),
        (lambda: separation_loss(good, kinds, 0.0), ConfigError, "bound"),
        (lambda: hinge_loss(good, kinds, math.inf), ConfigError, "bound"),
        (lambda: hinge_loss(good, kinds[:2], 1.0), ShapeError, "is_normal must be bool"),
        (lambda: margin_loss(good, kinds, 0.0), ConfigError, "quantile"),
        (lambda: separation_loss(good, kinds[:2], 1.0), ShapeError, "is_normal must be bool"),
        (lambda: margin_loss(-good - 0.1, kinds), DataError, ">= 0"),
        (lambda: consistency_loss(torch.rand(3, 4), torch.rand(3, 4, 2)), ShapeError, "2a"),
        (lambda: consistency_loss(torch.rand(3, 5), torch.rand(3, 4, 2)), ShapeError, "2a"),
    ):
        with pytest.raises(error, match=text):
            call()
