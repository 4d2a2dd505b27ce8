"""Farthest-point sampling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import farthest_point_sample


def cloud(number, seed=0):
    return torch.rand(number, 3, generator=torch.Generator().manual_seed(seed))


def test_corners_of_a_square_before_its_middle():
    square = torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]])
    assert farthest_point_sample(square, 5).tolist() == [0, 2, 3, 4, 1]


@given(st.integers(2, 60), st.integers(0, 10**6))
def test_covering_radius_falls_and_picks_stay_apart(number, seed):
    points = cloud(number, seed)
    picks = farthest_point_sample(points, number)
    assert sorted(picks.tolist()) == list(range(number))
    distance = torch.cdist(points.double(), points[picks].double(), compute_mode="donot_use_mm_for_euclid_dist")
    radius = distance.cummin(dim=1).values.amax(dim=0)
    assert bool((radius.diff() <= 1e-12).all())
    # Each pick lies exactly one covering radius from those before it.
    own = distance[picks].tril(-1) + torch.ones(number, number).triu() * 9
    torch.testing.assert_close(own[1:].amin(dim=1), radius[:-1])


def test_prefix_of_a_longer_choice():
    points = cloud(500)
    assert torch.equal(farthest_point_sample(points, 200)[:50], farthest_point_sample(points, 50))


def test_moving_the_cloud_changes_nothing():
    points = (cloud(400) * 1024).round() / 1024  # exact in float32 before and after the move
    assert torch.equal(farthest_point_sample(points, 100), farthest_point_sample(points + 64, 100))


def test_edges():
    assert farthest_point_sample(torch.zeros(1, 3), 1).tolist() == [0]
    assert farthest_point_sample(torch.zeros(3, 3), 3, start=1).tolist() == [1, 0, 2]
    collinear = torch.arange(5.0)[:, None] * torch.tensor([[1.0, 2, 3]])
    assert farthest_point_sample(collinear, 3).tolist() == [0, 4, 2]
    # Points near the origin count like all others.
    assert farthest_point_sample(torch.tensor([[9.0, 0, 0], [0, 0, 0]]), 2).tolist() == [0, 1]


def test_errors():
    with pytest.raises(ConfigError, match="count must be 1 to 3, got 4"):
        farthest_point_sample(torch.zeros(3, 3), 4)
    with pytest.raises(ShapeError, match=r"points must be \(N, 3\), got \(3, 2\)"):
        farthest_point_sample(torch.zeros(3, 2), 1)
