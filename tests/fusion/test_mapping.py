"""Residuals of crossmodal mapping by hand, their product, the published divisors."""

from __future__ import annotations

import math

import pytest
import torch

from mm3dad.errors import DataError, ShapeError
from mm3dad.fusion.mapping import join_product, mapping_residual, published_divisors

ALL = torch.ones(4, dtype=torch.bool)


def test_residual_by_hand():
    measured = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    predicted = torch.tensor([[9.0, 0.0], [0.0, 3.0], [-2.0, -2.0], [1.0, 0.0]])
    found = mapping_residual(predicted, measured, ALL)
    assert found.tolist() == pytest.approx([0, math.sqrt(2), 2, math.sqrt(2 - math.sqrt(2))], abs=1e-6)
    assert mapping_residual(predicted, measured, torch.tensor([True, False, False, True]))[1:3].tolist() == [0, 0]


def test_residual_ignores_length_and_is_symmetric():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 6, 5, generator=generator)
    held = torch.ones(6, dtype=torch.bool)
    torch.testing.assert_close(mapping_residual(7 * a, 0.1 * b, held), mapping_residual(b, a, held))
    assert mapping_residual(a[:0], b[:0], held[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("predicted", "measured", "held"),
    [
        (torch.ones(3, 2), torch.ones(3, 3), ALL[:3]),
        (torch.ones(3, 2), torch.ones(3, 2), ALL),
        (torch.ones(4, 2), torch.ones(4, 2), ALL.int()),
    ],
)
def test_shapes_that_do_not_fit(predicted, measured, held):
    with pytest.raises(ShapeError, match=r"must both be \(P, C\) and held \(P,\) bool"):
        mapping_residual(predicted, measured, held)


def test_features_that_are_not_finite():
    with pytest.raises(DataError, match="measured must be finite"):
        mapping_residual(torch.ones(4, 2), torch.full((4, 2), float("nan")), ALL)


def test_product():
    one, two = torch.tensor([2.0, 0.0]), torch.tensor([3.0, 5.0])
    assert join_product([one, two]).tolist() == [6, 0] and join_product([two]).tolist() == [3, 5]


def test_divisors_by_hand_and_of_an_empty_map():
    heat = torch.tensor([[0.0, 4.0], [0.0, 12.0]])
    assert published_divisors(heat) == pytest.approx((8, 2, math.sqrt(8)))
    assert published_divisors(torch.zeros(2, 2)) == (1, 1, 1)
    with pytest.raises(ShapeError, match=r"heat must be floating \(H, W\)"):
        published_divisors(torch.zeros(3))
