"""Convolution of a sparse grid by voting: each occupied cell votes for its neighbours, and empty space costs nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops._check import check_rows, check_same_device
from mm3dad.ops._native import native_kernels
from mm3dad.ops.cells import check_cells, make_keys, read_keys, shift_keys


class Votes(NamedTuple):
    """The result of a voting convolution.

    Args:
        cells: (M', 3) int64, the cells that got a vote, in lexicographic order.
        values: (M', C') floating.
        operations: multiply-adds that were made: M * k^3 * C * C', whatever the volume of the grid.
    """

    cells: Tensor
    values: Tensor
    operations: int


def sparse_vote_conv(cells: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None = None, within: Tensor | None = None) -> Votes:
    """Convolve the occupied cells of a grid: `conv3d` with zero padding k // 2, evaluated wherever a vote lands.

    Cell l adds w_(-i) h_l to each of the k^3 cells l + i, which is the dense sum turned round (Vote3D, theorem 1). The bias goes to the
    cells that got a vote; with a bias <= 0 and a ReLU after it, all other cells stay empty and sparse equals dense everywhere.
    Differentiable in values, weight and bias. Grids have no border: negative coordinates are as good as others.
    Source: Vote3Deep (ICRA 2017, arXiv 1609.06666); trained sheet, 7.1.

    Args:
        cells: (M, 3) int64, distinct, each coordinate within +-2^19.
        values: (M, C) floating.
        weight: (C', C, k, k, k) floating, k odd, as `torch.nn.functional.conv3d` takes it; axes as those of `cells`.
        bias: (C',) floating, or none.
        within: (Q, 3) int64, the only cells that may get a value, as in a submanifold convolution; those without a vote are left out.
            None: every cell in reach.
    Returns:
        cells, values and operations.
    Raises:
        ShapeError: a shape, dtype or device does not fit, or values are not finite.
        ConfigError: a cell twice, or beyond the limit.

    >>> one = torch.zeros(1, 3, dtype=torch.int64)
    >>> found = sparse_vote_conv(one, torch.ones(1, 1), torch.ones(2, 1, 3, 3, 3))
    >>> tuple(found.values.shape), found.operations
    ((27, 2), 54)
    """
    side = _check(cells, values, weight, bias)
    keys = make_keys(cells)
    if not bool((keys[1:] > keys[:-1]).all()):
        keys, order = keys.sort()
        if len(keys.unique_consecutive()) < len(keys):
            raise ConfigError(
                f"cells must be distinct, got {len(keys)} of which {len(keys.unique_consecutive())} differ; add up values of one cell first"
            )
        values = values[order]
    native = native_kernels(cells.device.type, "sparse_vote") if values.dtype in (torch.float32, torch.float64) else None
    targets = vote_cells_reference(keys, side) if native is None else native.vote_cells(keys, side)
    if within is not None:
        check_cells("within", within)
        check_same_device(cells=cells, within=within)
        targets = targets[torch.isin(targets, make_keys(within))]
    # conv3d correlates: the cell at l sees the one at l + i by the weight of i.
    kernel = weight.permute(2, 3, 4, 1, 0).to(values.dtype)
    start = values.new_zeros(len(weight)) if bias is None else bias.to(values.dtype)
    summed = (sum_votes_reference if native is None else _SumVotes.apply)(keys, values, kernel, start, targets)
    return Votes(read_keys(targets), summed, len(cells) * weight.numel())


def vote_cells_reference(keys: Tensor, side: int) -> Tensor:
    """Return the cells in reach of votes, in torch: numbers (M,) of cells -> (M',) ascending."""
    return (keys[:, None] + _list_shifts(side, keys)).unique()


def sum_votes_reference(keys: Tensor, values: Tensor, kernel: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Sum votes in torch.

    Args:
        keys: (M,) int64, numbers of the cells, ascending.
        values: (M, C) floating.
        kernel: (k, k, k, C, C'), the weight of the vote of the cell at each offset from a target.
        bias: (C',).
        targets: (M',) int64, ascending, the cells that take votes.
    Returns:
        (M', C'); where no vote lands, the bias.
    """
    summed = bias.expand(len(targets), -1)
    for shift, part in zip(_list_shifts(len(kernel), keys), kernel.flatten(0, 2), strict=True):
        hit = torch.isin(keys - shift, targets)
        summed = summed.index_add(0, torch.searchsorted(targets, keys[hit] - shift), values[hit] @ part)
    return summed


class _SumVotes(torch.autograd.Function):
    """`sum_votes_reference` by the native kernels, with the gradients of values, kernel and bias."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, kernel: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        values, kernel = values.contiguous(), kernel.contiguous()
        ctx.save_for_backward(keys, values, kernel, targets)
        return torch.ops.mm3dad.sparse_vote(keys, values, kernel, bias.contiguous(), targets, torch.get_num_threads())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        keys, values, kernel, targets = ctx.saved_tensors
        grad, threads = grads[0].contiguous(), torch.get_num_threads()
        of_values = of_kernel = None
        if ctx.needs_input_grad[1]:  # the targets vote back, by the same weights the other way round
            back = kernel.flip(0, 1, 2).transpose(3, 4).contiguous()
            of_values = torch.ops.mm3dad.sparse_vote(targets, grad, back, grad.new_zeros(values.shape[1]), keys, threads)
        if ctx.needs_input_grad[2]:
            of_kernel = torch.ops.mm3dad.sparse_vote_weight(keys, values, targets, grad, len(kernel), threads)
        return None, of_values, of_kernel, grad.sum(0), None


def _check(cells: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """Demand tensors that fit together; return the side of the kernel."""
    check_cells("cells", cells)
    check_rows("values", values, least=0)
    if len(values) != len(cells):
        raise ShapeError(f"values must have a row for each of {len(cells)} cells, got {len(values)}")
    side = weight.shape[-1]
    if weight.ndim != 5 or weight.shape[1] != values.shape[1] or weight.shape[2:] != (side,) * 3 or side % 2 == 0:
        raise ShapeError(f"weight must be (C', {values.shape[1]}, k, k, k) with k odd, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    check_same_device(cells=cells, values=values, weight=weight)
    return int(side)


def _list_shifts(side: int, like: Tensor) -> Tensor:
    """Return what each offset of a kernel adds to a cell's number, in the order of its weights: (side^3,)."""
    reach = torch.arange(side, device=like.device) - side // 2
    return shift_keys(torch.cartesian_prod(reach, reach, reach))
