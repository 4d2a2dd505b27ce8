"""The memory of how normal samples were recorded: distances in their own spread, by hand, and at its edges."""

from __future__ import annotations

import pytest
import torch

from mm3dad.memory.conditions import RESOLUTION, Conditions


def draw(count, seed=0):
    """Two quantities that vary together by 1 and apart by 0.1."""
    common, own = torch.randn(2, count, 1, generator=torch.Generator().manual_seed(seed))
    return torch.cat([common, common + 0.1 * own], 1)


def test_what_varies_together_counts_once():
    known = Conditions(draw(400))
    centre = known.rows.mean(0)
    along, across = centre + torch.tensor([0.5, 0.5]), centre + torch.tensor([0.5, -0.5])
    assert known.gap(along) < 0.5 and known.gap(across) > 4


def test_the_distance_is_that_of_mahalanobis_to_the_nearest():
    rows = draw(30)
    inverse = torch.linalg.inv(torch.cov(rows.double().T, correction=0) + RESOLUTION**2 * torch.eye(2, dtype=torch.float64))
    query = torch.tensor([0.3, -0.2])
    steps = (query - rows).double()
    assert Conditions(rows).gap(query) == pytest.approx(float(torch.einsum("na,ab,nb->n", steps, inverse, steps).min().sqrt()), rel=1e-5)


def test_held_out_samples_do_not_see_their_fold():
    known = Conditions(draw(9))
    folds = [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    known.measure_gaps(folds)
    for fold in folds:
        others = Conditions(known.rows[[number for number in range(9) if number not in fold]])
        assert known.gaps[fold].tolist() == pytest.approx([others.gap(known.rows[number]) for number in fold], rel=1e-5)


def test_edges():
    nothing = Conditions()
    nothing.measure_gaps([[0], [1]])
    assert not nothing.is_known and not nothing.reopen([0]).is_known and len(nothing.gaps) == 0
    twins = Conditions(torch.ones(2, 3))
    twins.measure_gaps([[0], [1]])
    assert twins.gaps.tolist() == [0, 0] and twins.gap(torch.ones(3)) == 0
    assert twins.gap(torch.tensor([1.0, 1.0, 1.0 + RESOLUTION])) == pytest.approx(1, rel=1e-4)
    twins.add(torch.zeros(3))
    assert twins.rows.shape == (3, 3) and twins.reopen([2]).rows.tolist() == [[0, 0, 0]] and twins.reopen().rows.shape == (3, 3)
