"""Coreset selection."""

from __future__ import annotations

import math

import pytest
import torch

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.memory.coreset import project_rows, projection_size, sampled_anchor, select_coreset, select_from_anchor, spread_anchor


def coreset_reference(features, count, start=0):
    """Row by row, as the paper writes it."""
    features = features.double()
    chosen, distance = [start], (features - features[start]).norm(dim=1)
    for _ in range(count - 1):
        distance[chosen[-1]] = -1
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (features - features[chosen[-1]]).norm(dim=1))
    return chosen


@pytest.mark.parametrize("channels", [1, 3, 33, 128])
def test_equals_the_paper(channels):
    features = torch.randn(700, channels, generator=torch.Generator().manual_seed(channels))
    assert select_coreset(features, 120, start=7).tolist() == coreset_reference(features, 120, start=7)


def test_covers_every_cluster_first():
    generator = torch.Generator().manual_seed(0)
    middle = torch.randn(40, 64, generator=generator) * 10
    owner = torch.randint(0, 40, (2000,), generator=generator)
    features = middle[owner] + torch.randn(2000, 64, generator=generator) * 0.1
    assert len(set(owner[select_coreset(features, 40)].tolist())) == len(set(owner.tolist()))


def test_background_rows_are_taken_once():
    features = torch.zeros(500, 33)
    features[100:120] = torch.rand(20, 33, generator=torch.Generator().manual_seed(0)) + 1
    picks = select_coreset(features, 21)
    assert picks[0] == 0
    assert sorted(picks[1:].tolist()) == list(range(100, 120))


def test_edges():
    assert select_coreset(torch.ones(1, 8), 1).tolist() == [0]
    assert select_coreset(torch.ones(4, 8), 4, start=3).tolist() == [3, 0, 1, 2]
    big = torch.tensor([[1e8, 0, 0, 0], [1e8, 1, 0, 0], [1e8, 0, 5, 0]], dtype=torch.float64)
    assert select_coreset(big, 3).tolist() == [0, 2, 1]


def test_errors():
    with pytest.raises(ConfigError, match="count must be 1 to 4, got 9; features has only that many rows"):
        select_coreset(torch.zeros(4, 8), 9)
    with pytest.raises(ShapeError, match="features must be finite"):
        select_coreset(torch.tensor([[torch.nan, 1.0]]), 1)


def select_slowly(features, count, anchor):
    features, anchor = features.double(), anchor.double().clone()
    chosen = []
    for _ in range(count):
        chosen.append(int(anchor.argmax()))
        anchor = torch.minimum(anchor, (features - features[chosen[-1]]).norm(dim=1))
    return chosen


def test_published_samplers_start_at_their_anchor():
    features = torch.randn(120, 5, generator=torch.Generator().manual_seed(1)) + 30
    table = torch.cdist(features.double(), features.double())
    torch.testing.assert_close(spread_anchor(features), table.norm(dim=1), rtol=1e-9, atol=1e-9)
    starts = torch.tensor([3, 70, 9])
    torch.testing.assert_close(sampled_anchor(features, starts), table[:, starts].mean(1), rtol=1e-7, atol=1e-9)
    for anchor in (spread_anchor(features), sampled_anchor(features, starts)):
        assert select_from_anchor(features, 30, anchor).tolist() == select_slowly(features, 30, anchor)


def test_a_published_first_pick_is_an_outlier():
    # Why the plain choice is the default: it may start anywhere, the published one always spends its first pick on the farthest row.
    features = torch.cat([torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), torch.full((1, 3), 100.0)])
    assert select_from_anchor(features, 1, spread_anchor(features)).tolist() == [200]
    assert select_coreset(features, 1, start=4).tolist() == [4]


def test_published_sampler_edge_cases():
    one = torch.ones(1, 3)
    assert select_from_anchor(one, 1, spread_anchor(one)).tolist() == [0]
    same = torch.ones(4, 3)
    assert select_from_anchor(same, 2, spread_anchor(same)).tolist() == [0, 0], "published picks may repeat among duplicates"
    with pytest.raises(ConfigError, match="count must lie in 1 to 4, the rows there are, got 5"):
        select_from_anchor(same, 5, spread_anchor(same))
    with pytest.raises(ShapeError, match=r"features must be floating \(N, C\) and anchor \(N,\)"):
        select_from_anchor(same, 2, torch.ones(3))


def test_projection_keeps_distances_and_repeats():
    features = torch.randn(60, 4000, generator=torch.Generator().manual_seed(2))
    size = projection_size(60)
    assert size == int(4 * math.log(60) / (0.81 / 2 - 0.729 / 3))
    found = project_rows(features, 256, seed=3)
    assert found.shape == (60, 256) and torch.equal(found, project_rows(features, 256, seed=3))
    assert not torch.equal(found, project_rows(features, 256, seed=4))
    true, kept = torch.pdist(features), torch.pdist(found)
    assert float((kept / true).min()) > 0.7 and float((kept / true).max()) < 1.3
    assert float((kept / true).mean()) == pytest.approx(1, abs=0.02)
    assert project_rows(features, 4000) is features


@pytest.mark.parametrize(("rows", "low", "high"), [(164640, 296, 297), (283024, 309, 310)])
def test_projection_size_of_the_sheet(rows, low, high):
    assert low <= projection_size(rows) <= high
