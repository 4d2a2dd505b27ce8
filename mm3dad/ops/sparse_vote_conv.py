"""Convolution of a sparse grid by voting: each occupied cell votes for its neighbours, and empty space costs nothing."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops._check import check_rows, check_same_device

LIMIT = 2**20  # three axes of twice that range fit into a number of 64 bits


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
    reach = torch.arange(side, device=cells.device) - side // 2
    offsets = torch.cartesian_prod(reach, reach, reach)
    keys = _make_keys(cells)
    if len(keys.unique()) < len(keys):
        raise ConfigError(f"cells must be distinct, got {len(keys)} of which {len(keys.unique())} differ; add up values of one cell first")
    targets = (keys[:, None] + _shift_keys(offsets)[None]).flatten()
    # The cell at l + i sees l at the offset -i: conv3d correlates, so that is the kernel flipped on every axis.
    kernel = weight.flip(2, 3, 4).permute(1, 2, 3, 4, 0).reshape(values.shape[1], -1)
    if within is not None:
        check_cells("within", within)
        taken, slot = _find_slots(targets, _make_keys(within).unique())
    else:
        taken, slot = targets.unique(return_inverse=True)
    votes = (values @ kernel).view(-1, weight.shape[0])
    if within is not None:
        hit = slot >= 0
        votes, slot = votes[hit], slot[hit]
    summed = votes.new_zeros(len(taken), weight.shape[0]).index_add(0, slot, votes)
    if bias is not None:
        summed = summed + bias
    return Votes(_read_keys(taken), summed, len(cells) * kernel.numel())


def voxelize(points: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """Sort points into cubic cells.

    Args:
        points: (N, 3) floating, N >= 1, finite.
        size: side of a cell, in the unit of the points.
    Returns:
        cells (M, 3) int64, distinct, in lexicographic order; (N,) int64, the cell of each point.
    Raises:
        ShapeError: points are not finite (N, 3).
        ConfigError: a size that is not above 0, or so small that coordinates overflow.
    """
    check_rows("points", points, 3)
    if not 0 < size < math.inf:
        raise ConfigError(f"size must be a finite length above 0, got {size}")
    place = (points.detach().double() / size).floor()
    farthest = float(place.abs().max())
    if farthest >= LIMIT // 2:
        raise ConfigError(f"size {size} puts a point {farthest:.0f} cells from the origin, more than {LIMIT // 2}; raise it")
    keys, owner = _make_keys(place.long()).unique(return_inverse=True)
    return _read_keys(keys), owner


def check_cells(name: str, cells: Tensor) -> None:
    """Demand (M, 3) int64 cells within the limit.

    Raises:
        ShapeError: another shape or dtype.
        ConfigError: a coordinate beyond the limit.
    """
    if not isinstance(cells, Tensor) or cells.ndim != 2 or cells.shape[1] != 3 or cells.dtype != torch.int64:
        got = f"{tuple(cells.shape)} {cells.dtype}" if isinstance(cells, Tensor) else type(cells).__name__
        raise ShapeError(f"{name} must be (M, 3) int64, got {got}; use voxelize(points, size)")
    if len(cells) and int(cells.abs().max()) >= LIMIT // 2:
        raise ConfigError(f"{name} must lie within +-{LIMIT // 2}, got {int(cells.abs().max())}; use larger cells or move the origin")


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


def _make_keys(cells: Tensor) -> Tensor:
    """Number cells so that the order of numbers is the lexicographic order of cells."""
    # Half of each axis' range stays free on either side, so that no vote borrows from another axis.
    return _shift_keys(cells + LIMIT)


def _shift_keys(offsets: Tensor) -> Tensor:
    """Return what an offset (., 3) adds to a cell's number."""
    return (offsets[:, 0] * 2 * LIMIT + offsets[:, 1]) * 2 * LIMIT + offsets[:, 2]


def _read_keys(keys: Tensor) -> Tensor:
    rest, last = keys // (2 * LIMIT), keys % (2 * LIMIT)
    return torch.stack([rest // (2 * LIMIT), rest % (2 * LIMIT), last], dim=1) - LIMIT


def _find_slots(keys: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the allowed numbers that occur, ascending, and for each key its place among them, -1 where it is not allowed."""
    place = torch.searchsorted(allowed, keys).clamp_max(max(0, len(allowed) - 1))
    hit = allowed[place] == keys if len(allowed) else torch.zeros_like(keys, dtype=torch.bool)
    used, slot = place[hit].unique(return_inverse=True)
    slots = torch.full_like(keys, -1)
    slots[hit] = slot
    return allowed[used], slots
