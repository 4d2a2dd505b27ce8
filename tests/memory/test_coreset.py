"""Coreset selection."""

from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.memory.coreset import select_coreset


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
