from __future__ import annotations

import sys

import pytest
import torch

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.scoring.forest import Forest

NORMAL = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def test_far_rows_score_higher_than_the_middle_and_alike():
    forest = Forest(NORMAL, 50, 3)
    middle, far, farther = (forest.score(torch.tensor([x, x])) for x in (0.0, 10.0, 100.0))
    assert 0 < middle < 0.5 < far == farther <= 1


def test_the_same_rows_and_seed_give_the_same_scores():
    row = torch.tensor([0.3, -1.0])
    assert Forest(NORMAL, 20, 7).score(row) == Forest(NORMAL.clone(), 20, 7).score(row) != Forest(NORMAL, 20, 8).score(row)


def test_one_normal_row_and_equal_rows_score():
    for rows in (NORMAL[:1], NORMAL[:1].expand(5, 2)):
        assert 0 < Forest(rows).score(NORMAL[3]) <= 1


def test_what_is_refused(monkeypatch):
    with pytest.raises(ShapeError, match=r"normal must be \(M, C\), a row per normal sample, got \(3,\)"):
        Forest(torch.zeros(3))
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ConfigError, match="needs the package scikit-learn"):
        Forest(NORMAL).score(NORMAL[0])
