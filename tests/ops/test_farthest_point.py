"""Farthest-point sampling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import farthest_point_sample
from mm3dad.ops.farthest_point import farthest_point_sample_reference
from mm3dad.ops.k_center import pick_centers_plain
from tests.ops.clouds import KINDS, make_cloud


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


def brute_force(points, count, start):
    distance, chosen = [float("inf")] * len(points), []
    rows = points.double().tolist()
    for _ in range(count):
        chosen.append(start)
        for i, row in enumerate(rows):
            squared = [(a - b) * (a - b) for a, b in zip(row, rows[start], strict=True)]
            distance[i] = min(distance[i], squared[0] + squared[1] + squared[2])
        distance[start] = float("-inf")
        start = max(range(len(rows)), key=lambda i: (distance[i], -i))
    return chosen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2, 15, 16, 17, 40, 257])
def test_equals_brute_force(kind, number):
    points = make_cloud(kind, number, seed=number)
    for start in {0, number // 2, number - 1}:
        count = min(number, 40)
        assert farthest_point_sample(points, count, start).tolist() == brute_force(points, count, start)
    assert sorted(farthest_point_sample(points, number).tolist()) == list(range(number))


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference_on_a_larger_cloud(kind):
    # More than one group of leaves, and a number that fills none of them.
    points = make_cloud(kind, 5003)
    for precision in (torch.float32, torch.float64):
        cloud_ = points.to(precision)
        assert torch.equal(farthest_point_sample(cloud_, 300, 7), farthest_point_sample_reference(cloud_, 300, 7))
    assert torch.equal(farthest_point_sample(points.float(), 300), pick_centers_plain(points.float(), 300))
