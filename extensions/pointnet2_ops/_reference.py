"""Every operation in plain torch: what the native kernels are held against, and what runs where they are not built.

Shapes as in `pointnet2_utils`; coordinates are compared in float64, equal distances go to the lowest index.
"""

from __future__ import annotations

import torch
from torch import Tensor

CENTERS_AT_ONCE = 2**22  # entries of a distance matrix held at once


def sample_farthest(points: Tensor, count: int) -> Tensor:
    """Pick (B, count) int64 rows of (B, N, 3) points, the first row first, then always the farthest from those picked."""
    points = points.double()
    batch, total, _ = points.shape
    chosen = torch.zeros(batch, count, dtype=torch.int64, device=points.device)
    rows = torch.arange(total, device=points.device)
    each = torch.arange(batch, device=points.device)
    distance = points.new_full((batch, total), torch.inf)
    for step in range(1, count):
        last = chosen[:, step - 1]
        distance = torch.minimum(distance, _squared(points, points[each, last, None]))
        distance[each, last] = -torch.inf
        # argmax may return any of several equal maxima.
        chosen[:, step] = torch.where(distance == distance.amax(1, keepdim=True), rows, total).amin(1)
    return chosen


def find_three(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared distances and rows (B, N, 3) of the three nearest points; infinite, row 0, where there are fewer."""
    squared, index = [], []
    near = min(3, points.shape[1])
    for block in queries.double().split(max(1, CENTERS_AT_ONCE // points.shape[1]), dim=1):
        matrix = _squared(block[:, :, None], points.double()[:, None])
        # A stable sort keeps equal distances in the order of their index.
        values, order = matrix.sort(dim=2, stable=True)
        squared.append(torch.nn.functional.pad(values[:, :, :near], (0, 3 - near), value=torch.inf))
        index.append(torch.nn.functional.pad(order[:, :, :near], (0, 3 - near)))
    return torch.cat(squared, 1), torch.cat(index, 1)


def query_balls(centers: Tensor, points: Tensor, radius: float, count: int) -> Tensor:
    """Return (B, M, count) int64: the first points, in their order, nearer than `radius`; short lists repeat their first entry."""
    found = []
    total = points.shape[1]
    rows = torch.arange(total, device=points.device)
    for block in centers.double().split(max(1, CENTERS_AT_ONCE // total), dim=1):
        inside = _squared(block[:, :, None], points.double()[:, None]) < radius * radius
        order = torch.where(inside, rows, total).sort(dim=2).values[:, :, :count]
        order = torch.nn.functional.pad(order, (0, count - order.shape[2]), value=total)
        first = order[:, :, :1] % total  # an empty ball points at row 0
        found.append(torch.where(order < total, order, first))
    return torch.cat(found, 1)


def gather(features: Tensor, index: Tensor) -> Tensor:
    """Pick columns (B, M) of (B, C, N) features."""
    return features.gather(2, index.long()[:, None].expand(-1, features.shape[1], -1))


def interpolate(features: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sum three columns (B, N, 3) of (B, C, M) features with their weights."""
    picked = gather(features, index.flatten(1)).unflatten(2, index.shape[1:])
    return (picked * weight[:, None]).sum(3)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    # Axis by axis, in the order of the native kernels: the same rounding, so the same ties.
    x, y, z = ((a[..., axis] - b[..., axis]).square() for axis in range(3))
    return x + y + z
