"""What several parts have in common: paint, bosses and boxes."""

from __future__ import annotations

import numpy as np

from mm3dad.data.synthetic._fields import Feature, Map, Rng, crop, ramp, smooth_noise


def paint(rng: Rng, n: int, color: tuple[float, float, float], tone: float, mottle: float = 0.035, speckle: float = 0.025) -> Map:
    """Return (n, n, 3) albedo: a colour whose brightness follows `tone` in [0, 1], with mottling and speckle."""
    shade = 1 + mottle * smooth_noise(rng, n, 9) + speckle * smooth_noise(rng, n, 130)
    base = np.asarray(color, np.float32) * (0.86 + 0.28 * tone) * (1 + 0.02 * rng.standard_normal(3)).astype(np.float32)
    return shade[..., None] * base


def add_features(height: Map, extent: float, features: list[Feature]) -> None:
    """Add smooth bosses (x, y, radius, height) to a height map in place."""
    for cx, cy, radius, top in features:
        window, dx, dy = crop(len(height), extent, cx, cy, radius)
        height[window] += top * ramp((1 - np.hypot(dx, dy) / radius) / 0.6)


def ring_of(rng: Rng, count: int, distance: float, radius: float, height: float, turn: float = 0.0) -> list[Feature]:
    """Return `count` features evenly on a circle, with small tolerances of place and height."""
    angle = turn + np.arange(count) * 2 * np.pi / count + 0.03 * rng.standard_normal(count)
    place = distance + 0.5 * rng.standard_normal(count)
    tops = height * (1 + 0.06 * rng.standard_normal(count))
    return [(float(d * np.cos(a)), float(d * np.sin(a)), radius, float(t)) for a, d, t in zip(angle, place, tops, strict=True)]


def box_inside(x: Map, y: Map, cx: float, cy: float, width: float, depth: float, corner: float = 1.5) -> Map:
    """Return the distance to the outline of a rounded box, positive inside."""
    dx, dy = np.abs(x - cx) - width / 2 + corner, np.abs(y - cy) - depth / 2 + corner
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
    return corner - outside
