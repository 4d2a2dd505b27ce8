"""Statistics of groups of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.errors import ShapeError
from mm3dad.ops._check import check_rows, check_same_device
from mm3dad.ops._native import native_kernels


def row_statistics(values: Tensor, index: Tensor) -> Tensor:
    """Take the mean and the spread (n - 1) of each group's rows.

    Args:
        values: (N, C) floating.
        index: (G, K) int64 rows of `values`, K >= 2.
    Returns:
        (G, 2 C), dtype of `values`: means, then spreads.
    Raises:
        ShapeError: a shape, dtype or device does not fit, a value is not finite, or an index is out of range.
    """
    check_rows("values", values)
    if index.ndim != 2 or index.shape[1] < 2 or index.dtype != torch.int64:
        raise ShapeError(f"index must be (G, K) int64 with K >= 2, got {tuple(index.shape)} {index.dtype}")
    check_same_device(values=values, index=index)
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(values)):
        raise ShapeError(f"index must lie in 0 to {len(values) - 1}, got {int(index.min())} to {int(index.max())}")
    kernels = native_kernels(values.device.type, "row_statistics") if values.dtype == torch.float32 else None
    if kernels is None:
        return row_statistics_reference(values, index)
    return kernels.row_statistics(values.detach().contiguous(), index.contiguous(), torch.get_num_threads())


def row_statistics_reference(values: Tensor, index: Tensor) -> Tensor:
    """Do the same in torch."""
    members = values[index]
    return torch.cat([members.mean(1), members.std(1)], dim=1)
