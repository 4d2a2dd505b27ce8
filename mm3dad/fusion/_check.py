"""Checks that the fusion functions share."""

from __future__ import annotations

from torch import Tensor

from mm3dad.errors import DataError, ShapeError
from mm3dad.ops.finite import is_finite


def check_values(name: str, values: Tensor, form: str) -> None:
    """Demand a finite floating tensor of the written form, such as "(P, K)"; the first axis may be empty, the others not.

    Raises:
        ShapeError: another type, dtype or rank, or an empty axis after the first.
        DataError: NaN or infinite values.
    """
    if not isinstance(values, Tensor):
        raise ShapeError(f"{name} must be a torch tensor {form}, got {type(values).__name__}; use torch.as_tensor(...)")
    axes = len([axis for axis in form.strip("()").split(",") if axis.strip()])
    if values.ndim != axes or 0 in values.shape[1:] or not values.is_floating_point():
        raise ShapeError(f"{name} must be floating {form}, got {tuple(values.shape)} {values.dtype}; reshape it or use .float()")
    if not is_finite(values):
        raise DataError(f"{name} must be finite, got NaN or infinite values; check the sample they come from")
