"""Relief of an organised cloud: which way it faces, light, heights over a plane, and the shaded height picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mm3dad.view.colors import MISSING, Array, Picture


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
        row, column = np.nonzero(valid)
        x, y = xyz[0][valid], xyz[1][valid]
        down = float(np.sum((row - row.mean()) * (y - y.mean())))
        right = float(np.sum((column - column.mean()) * (x - x.mean())))
        up = 1.0 if down < 0 else -1.0
        return up, up if right >= 0 else -up
    return -1.0, -1.0


def shade_surface(xyz: Array, valid: NDArray[np.bool_], relief: float = 1.0) -> Array:
    """Light an organised cloud from the upper left: (H, W) float32 in [0, 1], about 0.7 on a surface that faces the sensor.

    Args:
        xyz: (3, H, W) float32, metres.
        valid: (H, W) bool.
        relief: exaggeration of the slope; 1 is the true one.
    """
    height, width = valid.shape
    if height < 2 or width < 2 or not valid.any():
        return np.full((height, width), 0.7, np.float32)
    weight = valid.astype(np.float32)
    smooth = np.stack([_smooth(one, weight) for one in xyz.astype(np.float32)])
    reach = _smooth(weight, np.ones_like(weight)) > 0
    down, right = np.zeros_like(smooth), np.zeros_like(smooth)
    # differences over two pixels where both ends are measured, zero (a flat facet) at the borders of holes
    both = reach[2:] & reach[:-2]
    down[:, 1:-1] = np.where(both, smooth[:, 2:] - smooth[:, :-2], 0)
    both = reach[:, 2:] & reach[:, :-2]
    right[:, :, 1:-1] = np.where(both, smooth[:, :, 2:] - smooth[:, :, :-2], 0)
    up_y, up_z = toward_viewer(xyz, valid)
    normal = _orient(np.cross(right, down, axis=0), up_y, up_z)
    normal[:2] *= relief
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-20)
    light = np.array([-0.45, 0.45, 0.77], np.float32)
    lit = np.tensordot(light / np.linalg.norm(light), normal, 1)
    lit[np.linalg.norm(normal, axis=0) < 0.5] = 0.77
    return np.clip(0.12 + 0.78 * np.maximum(lit, 0), 0, 1).astype(np.float32)


def _orient(normal: Array, up_y: float, up_z: float) -> Array:
    """Express normals in picture axes (right, up, toward the viewer), all facing the viewer."""
    turned = np.stack([normal[0], normal[1] * up_y, normal[2] * up_z])
    return np.where(turned[2] < 0, -turned, turned)


def height_values(xyz: Array, valid: NDArray[np.bool_]) -> Array:
    """Return the height of each point (H, W) in [0, 1], robust to outliers; 1 is nearest to the sensor, NaN where unmeasured.

    A plane is subtracted first (least squares, refitted once without outliers): a tilted table would hide the part's relief.
    """
    heights = np.full(valid.shape, np.nan, np.float32)
    points = xyz[:, valid].astype(np.float64)
    if points.shape[1] == 0:
        return heights
    z = points[2] * toward_viewer(xyz, valid)[1]
    centred = points[:2] - points[:2].mean(1, keepdims=True)
    design = np.stack([*centred, np.ones_like(z)], 1)
    sample = slice(None, None, max(1, z.size // 20_000))
    kept = np.ones(design[sample].shape[0], bool)
    rest = z
    for _ in range(2):
        plane = np.linalg.lstsq(design[sample][kept], z[sample][kept], rcond=None)[0]
        rest = z - design @ plane
        spread = np.median(np.abs(rest[sample] - np.median(rest[sample])))
        kept = np.abs(rest[sample] - np.median(rest[sample])) <= 4 * spread + 1e-12
    low, high = np.quantile(rest[sample], [0.01, 0.99])
    heights[valid] = np.clip((rest - low) / max(high - low, 1e-9), 0, 1)
    return heights


def height_table() -> Picture:
    """Return the height colours (256, 3) uint8: blue-grey valleys to warm white tops, quiet beside the heat map's hues."""
    low, middle, high = (87, 107, 158), (158, 184, 184), (255, 242, 214)
    columns = [np.interp(np.arange(256), (0, 128, 255), stops) for stops in zip(low, middle, high, strict=True)]
    return np.stack(columns, 1).round().astype(np.uint8)


def height_picture(xyz: Array, valid: NDArray[np.bool_]) -> Picture:
    """Shade an organised cloud: colour by height over a plane, light from the upper left; unmeasured pixels are dark.

    Args:
        xyz: (3, H, W) float32, metres.
        valid: (H, W) bool.
    """
    heights = np.nan_to_num(height_values(xyz, valid), nan=0.0)
    tint = height_table()[(heights * 255).round().astype(np.uint8)].astype(np.float32) / 255
    shaded = tint * (0.35 + 0.9 * shade_surface(xyz, valid)[..., None])
    picture = (np.clip(shaded, 0, 1) * 255).round().astype(np.uint8)
    picture[~valid] = MISSING
    return picture
