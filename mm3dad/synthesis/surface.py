"""Defects of shape on a cloud: a patch stretched out of the surface (GLFM), a smooth bulge or dent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.ops import estimate_normals, nearest_neighbors

NORMAL_NEIGHBORS = 15


def measure_normal(points: Tensor, seed: int, neighbors: int = NORMAL_NEIGHBORS) -> Tensor:
    """Return the unit normal (3,) at one point, towards the sensor at the origin, from its nearest points.

    Args:
        points: (N, 3) floating, metres.
        seed: the point.
        neighbors: of the plane; clamped to N, and with fewer than three points the direction to the sensor is the normal.
    """
    if len(points) < 3:
        return -torch.nn.functional.normalize(points[seed].double(), dim=0).to(points.dtype)
    _, near = nearest_neighbors(points[seed : seed + 1].double(), points.double(), min(neighbors, len(points)))
    # The seed is the nearest of them.
    return estimate_normals(points[near[0]].double(), max(3, len(near[0])))[0].to(points.dtype)


def find_region(points: Tensor, seed: int, count: int, weights: Sequence[float] = (1.0, 1.0, 1.0), published: bool = False) -> Tensor:
    """Return the `count` points nearest to a seed when the axes are weighted, nearest first: (count,) int64.

    Args:
        points: (N, 3) floating, metres.
        seed: index of the point in the middle.
        count: 1 to N.
        weights: of the axes, above 0; they vary the region's shape.
        published: search the weighted cloud for the unweighted seed, as GLFM's code does; in camera coordinates the region then lies
            elsewhere and often misses its seed (trained sheet, 1.1). Else distances are weighted about the seed.
    Raises:
        ShapeError: points are not (N, 3).
        DataError: there is no point.
        ConfigError: seed or count is out of range.
    """
    _check_points(points, seed)
    if not 1 <= count <= len(points):
        raise ConfigError(f"count must lie in 1 to {len(points)}, the points there are, got {count}")
    place, factor = points.double(), torch.tensor(weights, dtype=torch.float64)
    middle = place[seed] if published else place[seed] * factor
    return nearest_neighbors(middle[None], place * factor, count)[1][0]


def stretch_points(points: Tensor, region: Tensor, normal: Tensor, height: float) -> Tensor:
    """Pull a region out along a normal, the nearest point farthest: the i-th of k points moves by (k - i) / k of the height (GLFM).

    Rank grows with the area, hence with the squared radius, so the result is a paraboloid with an edge of height / k.

    Args:
        points: (N, 3) floating, metres.
        region: (k,) int64, nearest first.
        normal: (3,), unit.
        height: metres, below 0 for a dent.
    Returns:
        (N, 3), dtype of `points`; only the region's points differ.
    """
    share = torch.arange(len(region), 0, -1, dtype=torch.float64) / len(region)
    moved = points.double().clone()  # of float64 points, double() is no copy
    moved[region] += height * share[:, None] * normal.double()
    return moved.to(points.dtype)


def published_height(points: Tensor, count: int) -> float:
    """Return the height of GLFM's code, 100 * count * q, with q the mean *squared* distance to the nearest other point.

    A squared length taken for a length: right only in metres, and twice the scale gives four times the height.
    """
    if len(points) < 2:
        raise DataError(f"a nearest other point needs at least 2 points, got {len(points)}; check the sensor")
    place = points.double()
    return 100.0 * count * float(nearest_neighbors(place, place, 2)[0][:, 1].square().mean())


def region_radius(points: Tensor, seed: int, region: Tensor) -> float:
    """Return the distance, in metres, from a seed to the farthest point of its region: a height in its units needs no unit."""
    return float((points[region].double() - points[seed].double()).norm(dim=1).max())


def bulge_points(points: Tensor, seed: int, normal: Tensor, radius: float, height: float) -> tuple[Tensor, Tensor]:
    """Push the surface out around a point by height * (1 - r^2 / radius^2)^2, which ends without an edge.

    Args:
        points: (N, 3) floating, metres.
        seed: index of the point in the middle.
        normal: (3,), unit.
        radius: metres, above 0.
        height: metres along the normal; below 0 a dent.
    Returns:
        points (N, 3), dtype of `points`, and the mask (N,) bool of those that moved.
    Raises:
        ShapeError: points are not (N, 3).
        DataError: there is no point.
        ConfigError: seed out of range, or a radius that is not above 0.
    """
    _check_points(points, seed)
    if not radius > 0:
        raise ConfigError(f"radius must be above 0 metres, got {radius}")
    place = points.double()
    share = (1 - (place - place[seed]).square().sum(1) / radius**2).clamp_min(0).square()
    moved = (place + height * share[:, None] * normal.double()).to(points.dtype)
    return moved, (moved != points).any(1)


def _check_points(points: Tensor, seed: int) -> None:
    if not isinstance(points, Tensor) or points.ndim != 2 or points.shape[1] != 3:
        got = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
        raise ShapeError(f"points must be (N, 3) metres, got {got}; use xyz.flatten(1).T[valid.flatten()]")
    if not len(points):
        raise DataError("the cloud has no valid point; check the sensor, the unit and the mask of missing points")
    if not 0 <= seed < len(points):
        raise ConfigError(f"seed must lie in 0 to {len(points) - 1}, got {seed}")
