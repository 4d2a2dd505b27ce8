"""One question asked of every input."""

from __future__ import annotations

from torch import Tensor


def is_finite(values: Tensor) -> bool:
    """Tell whether no value is NaN or infinite.

    The sum shows either in one pass; only where it is not finite itself, as large values may make it, each value is looked at.
    """
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
