"""NaN and infinity are found wherever they are."""

from __future__ import annotations

import torch

from mm3dad.ops.finite import is_finite


def test_finite_means_every_value():
    large = torch.full((4, 3), 3e38)
    assert is_finite(large) and is_finite(torch.full((9,), 6e4).half()) and is_finite(torch.empty(0))
    for bad in (float("nan"), float("inf"), -float("inf")):
        values = torch.zeros(4, 3)
        values[2, 1] = bad
        assert not is_finite(values) and not is_finite(torch.stack([values, -values]))
