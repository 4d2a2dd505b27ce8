"""Relief of a cloud: light, heights over a plane, and the shaded height picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mm3dad.view.colors import MISSING, Array, Picture
from mm3dad.view.normals import surface_normals, toward_viewer


def shade_normals(normals: Array, relief: float = 1.0) -> Array:
    """Light a surface from the upper left: (H, W) float32 in [0, 1], about 0.7 where it faces the sensor.

    Args:
        normals: (3, H, W) as `surface_normals` gives them.
        relief: exaggeration of the slope; 1 is the true one.
    """
    leaned = normals * np.array([relief, relief, 1], np.float32)[:, None, None]
    length = np.linalg.norm(leaned, axis=0)
    light = np.array([-0.45, 0.45, 0.77], np.float32)
    lit = np.tensordot(light / np.linalg.norm(light), leaned / np.maximum(length, 1e-20), 1)
    lit[length < 0.5] = 0.77
    return np.clip(0.12 + 0.78 * np.maximum(lit, 0), 0, 1).astype(np.float32)


def shade_surface(xyz: Array, valid: NDArray[np.bool_], relief: float = 1.0) -> Array:
    """Light a cloud from the upper left, as `shade_normals`.

    Args:
        xyz: (3, H, W) float32, metres.
        valid: (H, W) bool.
        relief: exaggeration of the slope; 1 is the true one.
    """
    return shade_normals(surface_normals(xyz, valid), relief)


def heights_above_plane(xyz: Array, valid: NDArray[np.bool_]) -> Array:
    """Return the height of each point over a fitted plane (H, W), metres toward the sensor; NaN where unmeasured.

    The plane is fitted by least squares and refitted once without outliers: a tilted table would hide the part's relief.
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
    heights[valid] = rest
    return heights


def height_values(xyz: Array, valid: NDArray[np.bool_]) -> Array:
    """Return the height over a plane (H, W) in [0, 1], robust to outliers; 1 is nearest to the sensor, NaN where unmeasured."""
    heights = heights_above_plane(xyz, valid)
    known = heights[valid]
    if known.size == 0:
        return heights
    low, high = np.quantile(known[:: max(1, known.size // 20_000)], [0.01, 0.99])
    return np.clip((heights - low) / max(high - low, 1e-9), 0, 1)


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
