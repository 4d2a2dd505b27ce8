"""Late fusion: three rules by hand, their order, and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.fusion import RULES, combine


def test_rules_by_hand():
    maps = [torch.tensor([[3.0, 0.0]]), torch.tensor([[4.0, 2.0]])]
    assert combine(maps).tolist() == [[7.0, 2.0]]
    assert combine(maps, "max").tolist() == [[4.0, 2.0]]
    assert combine(maps, "rss").tolist() == [[5.0, 2.0]]


@given(st.integers(0, 9999), st.integers(1, 3))
def test_max_rss_sum_are_ordered_and_symmetric(seed, count):
    maps = list(torch.rand((count, 3, 4), generator=torch.Generator().manual_seed(seed)))
    low, middle, high = (combine(maps, rule) for rule in ("max", "rss", "sum"))
    assert (low <= middle + 1e-6).all() and (middle <= high + 1e-6).all()
    for rule in RULES:
        assert torch.allclose(combine(maps[::-1], rule), combine(maps, rule))


@pytest.mark.parametrize("rule", RULES)
def test_one_modality_alone_is_unchanged(rule):
    only = torch.rand(3, 4)
    assert torch.allclose(combine([only], rule), only)
    assert combine([torch.tensor(2.0), torch.tensor(0.0)], rule).item() == 2.0


def test_errors():
    one = torch.rand(2, 2)
    with pytest.raises(ConfigError, match="did you mean 'sum'"):
        combine([one], "sums")
    for wrong in ([], [one, torch.rand(2, 3)], [one, torch.ones(2, 2, dtype=torch.int64)]):
        with pytest.raises(ShapeError, match="one shape"):
            combine(wrong)
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="calibrate"):
            combine([one, torch.full((2, 2), value)])
