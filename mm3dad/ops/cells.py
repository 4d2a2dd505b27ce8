"""Cells of a grid without borders: points sorted into them, numbers whose order is that of the cells, values looked up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops._check import check_rows

AXIS = 21  # bits of a coordinate: three fit into a number of 64 bits
LIMIT = 2 ** (AXIS - 1)


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
    keys, owner = make_keys(place.long()).unique(return_inverse=True)
    return read_keys(keys), owner


def look_up(cells: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """Read the values of chosen cells, 0 where a cell has none; differentiable in values.

    Args:
        cells: (M, 3) int64, distinct, in lexicographic order, as `sparse_vote_conv` and `voxelize` give them.
        values: (M, C) floating.
        wanted: (Q, 3) int64.
    Returns:
        (Q, C).
    Raises:
        ShapeError, ConfigError: cells that are none, or out of order.
    """
    check_cells("cells", cells)
    check_cells("wanted", wanted)
    keys, asked = make_keys(cells), make_keys(wanted)
    if len(values) != len(keys) or not bool((keys[1:] > keys[:-1]).all()):
        raise ShapeError(f"cells must ascend and have a row of values each, got {len(keys)} cells and {len(values)} rows; sort them first")
    hit = torch.isin(asked, keys)
    found = values.new_zeros(len(asked), values.shape[1])
    return found.index_put((hit.nonzero()[:, 0],), values[torch.searchsorted(keys, asked[hit])])


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


def make_keys(cells: Tensor) -> Tensor:
    """Number cells so that the order of numbers is the lexicographic order of cells."""
    # Half of each axis' range stays free on either side, so that no vote borrows from another axis.
    return shift_keys(cells + LIMIT)


def shift_keys(offsets: Tensor) -> Tensor:
    """Return what an offset (., 3) adds to a cell's number."""
    return (offsets[:, 0] << 2 * AXIS) + (offsets[:, 1] << AXIS) + offsets[:, 2]


def read_keys(keys: Tensor) -> Tensor:
    """Return the cells (., 3) of their numbers."""
    rest = (1 << AXIS) - 1
    return torch.stack([keys >> 2 * AXIS, keys >> AXIS & rest, keys & rest], dim=1) - LIMIT
