"""Laws of judged distances: what they must keep, whatever their formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.scoring.heldout import judge_rows, lift


def make_pair(seed, patches=9, near=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(patches, near, generator=generator) * 3, torch.rand(patches, near, generator=generator) + 0.5


@given(st.integers(0, 20), st.integers(1, 9), st.integers(1, 6))
def test_a_larger_distance_is_never_judged_smaller(seed, patches, near):
    distances, held = make_pair(seed, patches, near)
    judged = judge_rows(distances, held, 0.3)
    assert judged.shape == distances.shape and bool(judged.isfinite().all())
    assert bool((judge_rows(distances + 0.1, held, 0.3) > judged).all())


@given(st.integers(0, 20))
def test_the_same_distance_means_less_among_rows_that_lie_apart(seed):
    distances, held = make_pair(seed)
    assert bool((judge_rows(distances, held + 0.5, 0.3) < judge_rows(distances, held, 0.3)).all())


@given(st.integers(0, 20), st.floats(0.1, 50))
def test_the_unit_of_distance_does_not_matter(seed, factor):
    distances, held = make_pair(seed)
    torch.testing.assert_close(judge_rows(distances * factor, held * factor), judge_rows(distances, held) * factor, rtol=1e-3, atol=1e-3)


def test_share_reaches_from_nothing_to_all():
    held = torch.full((5, 3), 0.7)
    torch.testing.assert_close(judge_rows(held.clone(), held, 1.0), torch.zeros_like(held))
    assert torch.equal(judge_rows(held.clone(), held, 0.0), held)
    with pytest.raises(ConfigError, match="share must lie"):
        judge_rows(held, held, 1.5)


def test_patches_are_judged_one_by_one():
    distances, held = make_pair(3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(judge_rows(distances[order], held[order], 0.3), judge_rows(distances, held, 0.3)[order])
    assert torch.equal(judge_rows(distances[:1], held[:1], 0.3)[0], judge_rows(distances, held, 0.3)[0])


def test_shapes_must_agree():
    with pytest.raises(ShapeError, match=r"must both be \(P, K\), got \(3, 2\) and \(3, 1\)"):
        judge_rows(torch.zeros(3, 2), torch.zeros(3, 1), 0.1)
    with pytest.raises(ShapeError, match=r"got \(3,\) and \(3,\)"):
        judge_rows(torch.zeros(3), torch.zeros(3), 0.1)


@given(st.lists(st.floats(-50, 1e6, width=32), min_size=2, max_size=30))
def test_lifted_values_are_positive_and_in_order(numbers):
    values = torch.tensor(sorted(numbers), dtype=torch.float32)
    lifted = lift(values)
    assert bool((lifted > 0).all()) and bool((lifted.diff() >= 0).all())
    assert bool(((lifted >= 1) == (values >= 0)).logical_or(values > -1e-6).all())


def test_lift_joins_smoothly_and_survives_extremes():
    torch.testing.assert_close(lift(torch.tensor([-1e-4, 0.0, 1e-4])), torch.tensor([1 - 1e-4, 1.0, 1 + 1e-4]))
    extreme = lift(torch.tensor([-1e30, 1e30]))
    assert float(extreme[0]) == 0 and float(extreme[1]) == pytest.approx(1e30)
