"""The smallest entries of each row of a matrix that is only seen block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.ops._native import native_kernels


def keep_smallest(values: Tensor, index: Tensor, product: Tensor, squares: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Bring the smallest entries of each row up to date with a block of further columns.

    Args:
        values: (Q, K) floating, the smallest so far in any order; infinite where there are none yet.
        index: (Q, K) int64, their columns.
        product: (Q, n), columns `offset` to `offset + n` of the matrix, less `squares`.
        squares: (n,) added to each row; the sum is never held.
        offset: number of the block's first column.
    Returns:
        values and index (Q, K), in any order; which of equal entries stay at the cut is left open.
    """
    kernels = native_kernels(product.device.type, "keep_smallest") if product.dtype in (torch.float32, torch.float64) else None
    if kernels is None:
        return keep_smallest_reference(values, index, product, squares, offset)
    return kernels.keep_smallest(values, index, product, squares, offset, torch.get_num_threads())


def keep_smallest_reference(values: Tensor, index: Tensor, product: Tensor, squares: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Do the same in torch."""
    near, where = (product + squares).topk(min(values.shape[1], product.shape[1]), dim=1, largest=False)
    kept, order = torch.cat([values, near], dim=1).topk(values.shape[1], dim=1, largest=False)
    return kept, torch.cat([index, where + offset], dim=1).gather(1, order)
