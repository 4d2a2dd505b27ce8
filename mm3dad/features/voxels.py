"""Cells of a cloud and what is measured in each: occupancy, height over the surroundings, shape of the points (Vote3Deep)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mm3dad.features.adapted import take_part
from mm3dad.ops import nearest_neighbors, voxelize
from mm3dad.ops.normals import fit_planes
from mm3dad.ops.table import fit_plane, fit_table
from mm3dad.types import Sample

SURROUNDINGS = (64, 256)  # nearest cells that a plane is fitted to
CHANNELS = 4 + 2 * len(SURROUNDINGS)


@dataclass(frozen=True)
class PartCloud:
    """The part of a sample as a cloud.

    Args:
        part: (H, W) bool, its pixels.
        points: (N, 3) float32, metres, in axes along the table.
        axes: (3, 3) float32, rows, these axes in the camera's frame.
    """

    part: Tensor
    points: Tensor
    axes: Tensor


@dataclass(frozen=True)
class Voxels:
    """The occupied cells of a cloud.

    Args:
        cells: (M, 3) int64, distinct, in lexicographic order.
        owner: (N,) int64, the cell of each point.
        middle: (M, 3) float32, metres, the mean of each cell's points.
        features: (M, CHANNELS) float32: 1, linear, planar and spherical share, mean and deviation of the height over each surroundings.
    """

    cells: Tensor
    owner: Tensor
    middle: Tensor
    features: Tensor


def take_cloud(sample: Sample, part: Tensor, most: int, least: int) -> PartCloud:
    """Take the points of a part (H, W), thinned to at most `most`, in axes along the table.

    Raises:
        DataError: fewer points than `least`.
    """
    points = take_part(sample, part, most, least)
    axes = table_frame(sample, points)
    return PartCloud(part, points @ axes.T, axes)


def table_frame(sample: Sample, points: Tensor) -> Tensor:
    """Return axes (3, 3) float32, rows: two along the table and its normal towards the sensor; of the points' own plane without a table.

    A grid in these axes sees all samples from above, so that poses differ by a turn about one axis.

    Args:
        sample: with xyz.
        points: (N, 3), metres, the part.
    """
    assert sample.xyz is not None and sample.valid is not None
    table = fit_table(sample.xyz, sample.valid) or fit_plane(points.double())
    normal = table.normal
    # The axis of the camera that lies closest to the table, so that nothing hangs on a degenerate one.
    first = torch.eye(3, dtype=normal.dtype)[int(normal.abs().argmin())]
    first = torch.nn.functional.normalize(first - (first @ normal) * normal, dim=0)
    return torch.stack([first, torch.linalg.cross(normal, first), normal]).float()


def measure_voxels(points: Tensor, size: float) -> Voxels:
    """Sort a cloud into cells and measure each, lengths in units of a cell.

    Vote3Deep takes mean and variance of the reflectance, which these sensors lack; the height of points over planes of their
    surroundings stands in (the deviation, which has the mean's unit, in place of the variance). Shape factors of the eigenvalues
    l1 >= l2 >= l3 of a cell's scatter: (l1 - l2) / l1, (l2 - l3) / l1, l3 / l1.

    Args:
        points: (N, 3) floating, N >= 1, metres, the sensor at the origin.
        size: side of a cell, metres.
    Raises:
        ShapeError, ConfigError: as `voxelize`.
    """
    cells, owner = voxelize(points, size)
    place = points.double()
    count = torch.bincount(owner, minlength=len(cells)).double()[:, None]

    def average(rows: Tensor) -> Tensor:
        return rows.new_zeros(len(cells), rows.shape[1]).index_add_(0, owner, rows) / count

    middle = average(place)
    offset = place - middle[owner]
    scatter = average((offset[:, :, None] * offset[:, None]).flatten(1)).view(-1, 3, 3)
    third, second, first = torch.linalg.eigvalsh(scatter).clamp_min(0).unbind(1)
    shape = torch.stack([first - second, second - third, third], dim=1) / first.clamp_min(1e-6 * size**2)[:, None]
    found = [torch.ones(len(cells), 1, dtype=torch.float64), shape]
    _, near = nearest_neighbors(middle, middle, min(max(SURROUNDINGS), len(middle)))
    for number in SURROUNDINGS:
        center, normal = fit_planes(middle, near[:, :number])
        height = ((place - center[owner]) * normal[owner]).sum(1, keepdim=True) / size
        mean = average(height)
        found += [mean, average((height - mean[owner]).square()).sqrt()]
    return Voxels(cells, owner, middle.float(), torch.cat(found, dim=1).float())
