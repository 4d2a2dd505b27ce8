"""Projections in front of a labelled memory, and their losses."""

from __future__ import annotations

import pytest
import torch

from mm3dad.memory.labelled import label_probability
from mm3dad.nets.labelled_head import PairProjection, dice_loss, focal_loss, scaled_cross_entropy


def test_identity_projections_equal_the_training_free_form():
    head = PairProjection(5, 5)
    with torch.no_grad():
        for layer in (head.query, head.key):
            layer.weight.copy_(torch.eye(5))
            layer.bias.zero_()
    queries, keys, values = torch.randn(7, 5), torch.randn(4, 5), torch.eye(2).repeat(2, 1)
    torch.testing.assert_close(label_probability(*head(queries, keys), values), label_probability(queries, keys, values))


def test_an_isometric_start_is_the_training_free_form():
    """Wide enough, it keeps all products; narrower, queries and keys at least go the same way. Drawn at random, as published, neither."""
    queries, keys, values = torch.randn(7, 5), torch.randn(4, 5), torch.eye(2).repeat(2, 1)
    plain = label_probability(queries, keys, values)
    torch.testing.assert_close(label_probability(*PairProjection(5, 8)(queries, keys), values), plain)
    narrow = PairProjection(5, 3)
    assert torch.equal(*narrow(queries, queries)) and not torch.equal(*PairProjection(5, 8, isometric=False)(queries, queries))


def test_published_size():
    heads = PairProjection(768, 768), PairProjection(1024, 768)
    assert sum(p.numel() for head in heads for p in head.parameters()) == 2_755_584


def test_losses_fall_from_wrong_to_right_and_stay_finite():
    mask = torch.zeros(2, 8, 8)
    mask[0, 2:5, 2:5] = 1
    right, wrong = torch.stack([1 - mask, mask], 1), torch.stack([mask, 1 - mask], 1)
    assert float(focal_loss(right, mask)) < 1e-3 < 5 < float(focal_loss(wrong, mask)) < 20
    assert float(dice_loss(mask, mask)) == pytest.approx(0) and float(dice_loss(1 - mask, mask)) > 0.9
    labels = torch.tensor([0, 1])
    assert float(scaled_cross_entropy(torch.eye(2), labels)) < 1e-4 < float(scaled_cross_entropy(torch.eye(2).flip(0), labels))


def test_gradients_reach_all_projections():
    head = PairProjection(5, 3)
    probability = label_probability(*head(torch.randn(16, 5), torch.randn(6, 5)), torch.eye(2).repeat(3, 1))
    dice_loss(probability[:, 1].view(1, 4, 4), torch.eye(4)[None]).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters())
    assert float(head.query.weight.grad.abs().sum()) > 0 and float(head.key.weight.grad.abs().sum()) > 0
