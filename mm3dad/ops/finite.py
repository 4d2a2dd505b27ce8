"""One question asked of every input."""

from __future__ import annotations

from torch import Tensor


def is_finite(values: Tensor) -> bool:
    """Tell whether no value is NaN or infinite.

    Sums of rows show either in one pass; only where one is not finite itself, as large values may make it, each value is looked at.
    """
    sums = values.sum(dim=-1) if values.ndim else values
    return bool(sums.isfinite().all()) or bool(values.isfinite().all())
