"""Surface normals from neighbourhoods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm3dad.errors import ShapeError
from mm3dad.ops._blocks import map_blocks
from mm3dad.ops._check import check_integer, check_rows
from mm3dad.ops._native import native_kernels
from mm3dad.ops.neighbors import nearest_neighbors

# 512 x 30 x 3 float64 offsets take 0.4 MB.
POINT_BLOCK = 512


def estimate_normals(points: Tensor, neighbors: int = 30, viewpoint: Sequence[float] = (0.0, 0.0, 0.0)) -> Tensor:
    """Fit a plane to each point's neighbourhood and turn its normal towards the sensor.

    The sign matters: FPFH of a flipped normal is another descriptor. So it is fixed by the viewpoint, and by the first non-zero of
    -z, -y, -x where the view grazes the surface. Where the neighbourhood is no surface (a line, one place) the normal is one of the
    equally good ones, always the same.

    Args:
        points: (N, 3) floating, metres.
        neighbors: points per neighbourhood, the point itself included; clamped to N.
        viewpoint: where the sensor stands, metres; the origin for clouds in camera coordinates.
    Returns:
        (N, 3) unit normals, dtype of `points`.
    Raises:
        ShapeError: `points` is not finite floating (N, 3), or `viewpoint` is not three numbers.
        ConfigError: `neighbors` is below 3.
    """
    check_rows("points", points, width=3)
    neighbors = check_integer("neighbors", neighbors, 3)
    if len(viewpoint) != 3:
        raise ShapeError(f"viewpoint must be three coordinates in metres, got {len(viewpoint)}")
    wide = points.detach().double()
    _, table = nearest_neighbors(wide, wide, min(neighbors, len(points)))
    return fit_planes(wide, table, viewpoint)[1].to(points.dtype)


def fit_planes(points: Tensor, table: Tensor, viewpoint: Sequence[float] = (0.0, 0.0, 0.0)) -> tuple[Tensor, Tensor]:
    """Fit them from a ready table of neighbours (N, K) and float64 points: their middles and their normals, (N, 3) each."""
    kernels = native_kernels(points.device.type, "fit_planes")
    if kernels is None:
        return fit_planes_reference(points, table, viewpoint)
    view = points.new_tensor(list(viewpoint))
    return kernels.fit_planes(points.contiguous(), table.contiguous(), view, torch.get_num_threads())


def fit_planes_reference(points: Tensor, table: Tensor, viewpoint: Sequence[float] = (0.0, 0.0, 0.0)) -> tuple[Tensor, Tensor]:
    """Do the same in torch."""
    middles = map_blocks(lambda near: points[near].mean(dim=1), POINT_BLOCK, table)
    normals = map_blocks(lambda near: _smallest_axis(points, near), POINT_BLOCK, table)
    view = points.new_tensor(list(viewpoint)) - points
    facing = (normals * view).sum(dim=1)
    # Rounding alone must not decide a grazing view.
    grazing = facing.abs() <= 1e-9 * view.norm(dim=1)
    for axis in (2, 1, 0):
        facing = torch.where(grazing & (facing.abs() <= 1e-9 * view.norm(dim=1)), -normals[:, axis], facing)
    return middles, normals * torch.where(facing < 0, -1.0, 1.0).unsqueeze(1)


def _smallest_axis(points: Tensor, table: Tensor) -> Tensor:
    offsets = points[table]
    offsets = offsets - offsets.mean(dim=1, keepdim=True)
    spread = offsets.transpose(1, 2) @ offsets
    return torch.linalg.eigh(spread).eigenvectors[:, :, 0]
