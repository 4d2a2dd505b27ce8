"""Which way a cloud faces: the viewer's axes, normals and curvature, on a grid or without one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mm3dad.view.colors import Array


def _smooth(values: Array, weight: Array) -> Array:
    """Average over 3 x 3 measured neighbours; sensor noise of one pixel would otherwise drown the relief."""

    def box(array: Array) -> Array:
        padded = np.pad(array, 1)
        rows = padded[:-2] + padded[1:-1] + padded[2:]
        return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]

    return np.asarray(box(values * weight) / np.maximum(box(weight), 1e-6), np.float32)


def toward_viewer(xyz: Array, valid: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the signs (of y, of z) that point up in the picture and toward the sensor.

    Sensors write y down and z away from them (MVTec 3D-AD), graphics programs y up and z toward the viewer. The rows of an
    organised cloud tell which, and right-handed axes give z from y.
    """
    if xyz.shape[1] > 1 and int(valid.sum()) > 1:
        step = max(1, min(valid.shape) // 128)
        if int(valid[::step, ::step].sum()) > 100:  # a part of them says it as surely
            xyz, valid = xyz[:, ::step, ::step], valid[::step, ::step]
        row, column = np.nonzero(valid)
        x, y = xyz[0][valid], xyz[1][valid]
        down = float(np.sum((row - row.mean()) * (y - y.mean())))
        right = float(np.sum((column - column.mean()) * (x - x.mean())))
        up = 1.0 if down < 0 else -1.0
        return up, up if right >= 0 else -up
    return -1.0, -1.0


def surface_normals(xyz: Array, valid: NDArray[np.bool_]) -> Array:
    """Return normals (3, H, W) in picture axes (right, up, toward the viewer), unit length; zero where there is no surface.

    On a grid they follow from the neighbouring pixels; without one, from the plane of each point's nearest 30 points.

    Args:
        xyz: (3, H, W) float32, metres.
        valid: (H, W) bool.
    """
    if not valid.any():
        return np.zeros(xyz.shape, np.float32)
    up_y, up_z = toward_viewer(xyz, valid)
    if 1 in valid.shape:
        normal = _scattered_normals(xyz, valid)
    else:
        down, right = _steps(_smooth_points(xyz, valid), valid)
        normal = np.cross(right, down, axis=0)
    normal = _orient(normal, up_y, up_z)
    return np.asarray(normal / np.maximum(np.linalg.norm(normal, axis=0), 1e-20), np.float32)


def _scattered_normals(xyz: Array, valid: NDArray[np.bool_]) -> Array:
    import torch

    from mm3dad.ops import estimate_normals

    normal = np.zeros(xyz.shape, np.float32)
    normal[:, valid] = estimate_normals(torch.from_numpy(np.ascontiguousarray(xyz[:, valid].T))).numpy().T
    return normal


def _smooth_points(xyz: Array, valid: NDArray[np.bool_]) -> Array:
    weight = valid.astype(np.float32)
    return np.stack([_smooth(one, weight) for one in xyz.astype(np.float32)])


def _steps(values: Array, valid: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return the change of (C, H, W) from one pixel to the next, down and right: mean of both sides where both are measured."""
    reach = _smooth(valid.astype(np.float32), np.ones(valid.shape, np.float32)) > 0
    return _step(values, reach), np.swapaxes(_step(np.swapaxes(values, 1, 2), reach.T), 1, 2)


def _step(values: Array, reach: NDArray[np.bool_]) -> Array:
    both = reach[1:] & reach[:-1]
    change = np.where(both, values[:, 1:] - values[:, :-1], 0)
    total, count = np.zeros_like(values), np.zeros(reach.shape, np.float32)
    total[:, 1:] += change
    total[:, :-1] += change
    count[1:] += both
    count[:-1] += both
    return total / np.maximum(count, 1)


def mean_curvature(xyz: Array, valid: NDArray[np.bool_], normals: Array) -> Array:
    """Return how the normals spread over the surface, (H, W) float32 per metre: > 0 on a ridge, < 0 in a hollow, NaN where unmeasured.

    It is the mean curvature: 1 / r on a sphere of radius r that bulges toward the sensor.

    Args:
        xyz: (3, H, W) float32, metres.
        valid: (H, W) bool.
        normals: (3, H, W) as `surface_normals` gives them.
    """
    curvature = np.full(valid.shape, np.nan, np.float32)
    if not valid.any():
        return curvature
    up_y, up_z = toward_viewer(xyz, valid)
    turned = (xyz * np.array([1, up_y, up_z], np.float32)[:, None, None]).astype(np.float32)
    if 1 in valid.shape:
        curvature[valid] = _scattered_curvature(turned[:, valid].T, normals[:, valid].T)
        return curvature
    weight = valid.astype(np.float32)
    smooth = np.stack([_smooth(one, weight) for one in normals])
    parts = []
    for step, change in zip(_steps(_smooth_points(turned, valid), valid), _steps(smooth, valid), strict=True):
        length = (step * step).sum(0)
        parts.append(np.where(length > 0, (step * change).sum(0) / np.maximum(length, 1e-20), 0))
    curvature[valid] = _smooth(np.asarray((parts[0] + parts[1]) / 2, np.float32), weight)[valid]
    return curvature


def _scattered_curvature(points: Array, normals: Array, neighbors: int = 16) -> Array:
    import torch

    from mm3dad.ops import nearest_neighbors

    place = torch.from_numpy(np.ascontiguousarray(points))
    near = nearest_neighbors(place, place, min(neighbors, len(points)))[1].numpy()
    step, change = points[near] - points[:, None], normals[near] - normals[:, None]
    length = (step * step).sum(-1)
    ratio = np.where(length > 0, (step * change).sum(-1) / np.maximum(length, 1e-20), 0)
    return np.asarray(ratio.sum(1) / np.maximum((length > 0).sum(1), 1), np.float32)


def _orient(normal: Array, up_y: float, up_z: float) -> Array:
    """Express normals in picture axes (right, up, toward the viewer), all facing the viewer."""
    turned = np.stack([normal[0], normal[1] * up_y, normal[2] * up_z])
    return np.where(turned[2] < 0, -turned, turned)
