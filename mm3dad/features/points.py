"""Group descriptors of organised point clouds: farthest centres, iterative grouping, FPFH statistics or Point-MAE tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mm3dad.errors import DataError
from mm3dad.ops import farthest_point_sample, fpfh, iterative_group, nearest_neighbors, row_statistics, three_interpolate
from mm3dad.ops.normals import fit_planes

if TYPE_CHECKING:
    from mm3dad.nets.point_transformer import PointTransformer


FPFH_STATISTICS = 66


@dataclass(frozen=True)
class PointGroups:
    """The groups of one cloud.

    Args:
        points: (N, 3) float32, metres, the thinned valid points.
        pixel: (N,) int64, each point's place in the flattened image grid.
        center: (G,) int64 into `points`.
        index: (G, size) int64 into `points`, the members.
        curvature: (G,) float, 0 on a plane.
    """

    points: Tensor
    pixel: Tensor
    center: Tensor
    index: Tensor
    curvature: Tensor


def thin_points(xyz: Tensor, valid: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Take the valid points of an organised cloud on the finest regular sub-grid that holds at most `most`.

    A sub-grid keeps the sensor's own density and needs no random numbers, so neighbouring scans are thinned alike.

    Args:
        xyz: (3, H, W) float32, metres.
        valid: (H, W) bool.
        most: largest number of points.
    Returns:
        points (N, 3) and their flat pixel index (N,).
    Raises:
        DataError: no valid point.
    """
    height, width = valid.shape
    total = int(valid.sum())
    if total == 0:
        raise DataError("the cloud has no valid point; check the sensor, the unit and the mask of missing points")
    step = max(1.0, math.sqrt(total / most)) if height > 1 else max(1.0, total / most)
    while True:
        if height > 1:
            rows = torch.arange(0, height, step, device=xyz.device).long()
            columns = torch.arange(0, width, step, device=xyz.device).long()
            pixel = (rows[:, None] * width + columns[None]).flatten()
            pixel = pixel[valid.flatten()[pixel]]
        else:
            pixel = valid.flatten().nonzero()[:, 0]
            pixel = pixel[torch.arange(0, len(pixel), step, device=xyz.device).long()]
        if len(pixel) <= most or step > max(height, width):
            break
        step *= 1.02
    if len(pixel) == 0:
        pixel = valid.flatten().nonzero()[:1, 0]
    return xyz.flatten(1).T[pixel].contiguous(), pixel


def group_points(points: Tensor, pixel: Tensor, centers: int, size: int, grow: bool = True) -> PointGroups:
    """Spread centres over a cloud and gather the points around each.

    Args:
        points: (N, 3) float32, metres.
        pixel: (N,) int64.
        centers: groups wanted; G = min(centers, N).
        size: points per group.
        grow: follow the surface where it is curved (iterative point grouping); else plain nearest neighbours.
    Raises:
        DataError: fewer points than one group.
    """
    if len(points) < size:
        raise DataError(
            f"the cloud has {len(points)} valid points, fewer than one group of {size}; "
            "lower group_size or check the sensor for missing points"
        )
    center = farthest_point_sample(points, min(centers, len(points)))
    pool, threshold = (2 * size, 0.01) if grow else (size, math.inf)
    groups = iterative_group(points, center, size=size, step=max(4, size * 5 // 8), pool=pool, curvature_threshold=threshold)
    return PointGroups(points, pixel, center, groups.index, groups.curvature)


def take_fpfh_roots(points: Tensor, neighbors: int = 100) -> Tensor:
    """Take the square roots of FPFH (N, 33) brought to at most 1, so that the one or two full bins of a plane do not drown the rest.

    Distances of roots are Hellinger's, between histograms.
    Source: Rusu et al., ICRA 2009 (FPFH).
    """
    histograms = fpfh(points, neighbors=neighbors).div_(200)
    if histograms.device.type != "cpu" or histograms.dtype == torch.bfloat16:
        return histograms.sqrt_()
    # Most bins are empty, and torch's root of a zero takes ten times as long as another.
    np.sqrt(histograms.numpy(), out=histograms.numpy())
    return histograms


def describe_groups(groups: PointGroups, neighbors: int = 100) -> Tensor:
    """Describe each group by the mean and the spread of the roots of its members' FPFH: (G, FPFH_STATISTICS) float32."""
    return row_statistics(take_fpfh_roots(groups.points, neighbors), groups.index)


def measure_relief(centers: Tensor, ranges: Sequence[int] = (64, 256)) -> Tensor:
    """Measure how far each centre lies above planes of its surroundings: (G, len(ranges) + 1) float32, metres, towards the sensor.

    FPFH sees edges and bends; the flat floor of a wide dent looks to it like any flat surface. The planes are fitted to the nearest
    `ranges` centres and, last, to the whole cloud: its dominant plane, the one with most centres near it.

    Args:
        centers: (G, 3) floating, metres, the sensor at the origin.
        ranges: numbers of nearest centres; clamped to G.
    """
    place = centers.double()
    _, near = nearest_neighbors(place, place, min(max(ranges), len(place)))
    heights = []
    for count in ranges:
        middle, normal = fit_planes(place, near[:, :count])
        heights.append(((place - middle) * _toward_sensor(normal, middle)).sum(1))
    heights.append(_measure_above_dominant(place, near[:, : min(ranges)]))
    return torch.stack(heights, dim=1).float()


def _measure_above_dominant(place: Tensor, near: Tensor, starts: int = 128, rounds: int = 15) -> Tensor:
    """Height (G,) of each centre above the dominant plane, found by consensus of local planes.

    A fit to all centres, even a robust one that starts from their common plane, tilts towards a dent that covers a third of the view.
    So the start is the one of `starts` local planes (through the centres `near`) that most centres agree with, and the unit of
    agreement stays what the best of them leaves: the distance within which its nearest 30 % lie.
    """
    first = torch.linspace(0, len(place) - 1, min(starts, len(place)), device=place.device).long()
    # Centred, so that the products cancel no digits.
    center = place.mean(0)
    offset = place - center
    around = offset[near[first]]
    middle = around.mean(1)
    around = around - middle[:, None]
    normal = torch.linalg.eigh(around.transpose(1, 2) @ around).eigenvectors[:, :, 0]
    height = normal @ offset.T - (normal * middle).sum(1, keepdim=True)
    unit = height.abs().quantile(0.3, dim=1).min().clamp_min(1e-6 * offset.norm(dim=1).max() + torch.finfo(place.dtype).tiny)
    height = height[(1 / (1 + (height / unit) ** 2)).sum(1).argmax()]
    moments = torch.cat([offset, torch.ones_like(offset[:, :1])], dim=1)
    for _ in range(rounds):
        weighted = moments.T @ (moments / (1 + (height / unit) ** 2)[:, None])
        middle = weighted[3, :3] / weighted[3, 3]
        normal = torch.linalg.eigh(weighted[:3, :3] - weighted[3, 3] * torch.outer(middle, middle)).eigenvectors[:, 0]
        height = (offset - middle) @ normal
    return -height if float(normal @ (middle + center)) > 0 else height


def _toward_sensor(normal: Tensor, place: Tensor) -> Tensor:
    return torch.where((normal * place).sum(1, keepdim=True) > 0, -normal, normal)


@torch.inference_mode()
def encode_groups(groups: PointGroups, net: PointTransformer, layers: Sequence[int]) -> Tensor:
    """Describe each group by the tokens of a Point-MAE encoder: (G, sum of layer widths) float32.

    The cloud is centred and scaled to the unit sphere first, the scale the encoder was trained at
    (MuSc-V2's preprocessing; multimodal sheet, part 1.3).
    """
    return torch.cat(net(*scale_groups(groups), layers=tuple(layers)), dim=1)


def scale_groups(groups: PointGroups) -> tuple[Tensor, Tensor]:
    """Return the points of each group less its centre (G, size, 3), and the centres (G, 3), of the cloud centred and in the unit sphere."""
    points = groups.points - groups.points.mean(0)
    points = points / points.norm(dim=1).max().clamp_min(torch.finfo(points.dtype).tiny)
    centers = points[groups.center]
    return points[groups.index] - centers[:, None], centers


def spread_to_points(values: Tensor, centers: Tensor, points: Tensor) -> Tensor:
    """Carry one value per group to any points of the same cloud by its nearest centres: (N, C).

    Args:
        values: (G, C).
        centers: (G, 3), metres.
        points: (N, 3), metres.
    """
    if len(centers) < 3:
        return values[nearest_neighbors(points, centers, 1)[1][:, 0]]
    return three_interpolate(points, centers, values)
