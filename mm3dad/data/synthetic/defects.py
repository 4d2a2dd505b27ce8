"""The defects: each changes height, colour or both of a part's maps at one place that suits it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from mm3dad.data.synthetic._fields import Map, Rng, dome, make_grid, ramp, smooth_noise
from mm3dad.data.synthetic.parts import Part

# For each kind the senses that are meant to see it, cycled over the index: of 28 defects (7 kinds x 4),
# 12 are for both, 8 for the colour camera alone and 8 for the depth sensor alone.
VARIANTS: dict[str, tuple[str, ...]] = {
    "bump": ("xyz", "both", "both", "xyz"),
    "contamination": ("rgb", "both", "rgb", "rgb"),
    "cut": ("both", "both", "rgb", "both"),
    "dent": ("both", "xyz", "xyz", "both"),
    "feature": ("xyz", "xyz", "xyz", "xyz"),
    "hole": ("both", "both", "both", "both"),
    "stain": ("rgb", "rgb", "rgb", "rgb"),
}
_PALETTE = np.asarray(
    [(0.07, 0.06, 0.06), (0.93, 0.92, 0.88), (0.62, 0.12, 0.10), (0.13, 0.26, 0.62), (0.12, 0.45, 0.22), (0.90, 0.75, 0.15)], np.float32
)


def _choose_place(rng: Rng, part: Part, size: float, edge: bool) -> tuple[float, float, float, float]:
    """Return (x, y) mm of a defect's centre and the unit direction (ux, uy) from there to the part's edge."""
    from scipy.ndimage import distance_transform_edt

    step = max(1, len(part.height) // 100)
    coarse = np.s_[step // 2 :: step, step // 2 :: step]
    inside = distance_transform_edt(part.cover[coarse] > 0.5)
    cell = 2 * part.extent / len(inside)
    room, surface = inside * cell, part.surface[coarse] & (inside > 0)
    wanted = (room > 3) & (room < 7) if edge else surface & (room >= min(0.5 * size, 0.75 * float(room[surface].max())))
    # Throwing darts in millimetres gives the same place at every picture size.
    darts = rng.uniform(-part.extent, part.extent, (3000, 2))
    columns, rows = ((darts + part.extent) / cell).astype(int).clip(0, len(inside) - 1).T
    hits = np.nonzero(wanted[rows, columns])[0]
    pick = hits[0] if hits.size else np.argmax(room[rows, columns])
    gy, gx = np.gradient(inside)
    window = np.s_[max(0, rows[pick] - 2) : rows[pick] + 3, max(0, columns[pick] - 2) : columns[pick] + 3]
    ux, uy = -float(gx[window].mean()), -float(gy[window].mean())
    norm = max(math.hypot(ux, uy), 1e-6)
    return float(darts[pick, 0]), float(darts[pick, 1]), ux / norm, uy / norm


def _choose_color(rng: Rng, part: Part) -> Map:
    """Return a colour that the part does not have: one of the two of the palette farthest from all of its own."""
    own = part.albedo[::8, ::8][part.cover[::8, ::8] > 0.9]
    far = np.argsort(np.linalg.norm(_PALETTE[:, None] - own, axis=2).min(1))[-2:]
    return _PALETTE[far[int(rng.random() * len(far))]]


def _blob(rng: Rng, part: Part, x: float, y: float, size: float, rough: float) -> Map:
    """Return the relative radius (1 on the outline) of an uneven spot of `size` mm across."""
    n = len(part.height)
    gx, gy = make_grid(n, part.extent)
    angle, squeeze = rng.uniform(0, np.pi), rng.uniform(0.85, 1.15)
    along = (gx - x) * math.cos(angle) + (gy - y) * math.sin(angle)
    across = (gy - y) * math.cos(angle) - (gx - x) * math.sin(angle)
    return np.hypot(along * squeeze, across / squeeze) / (size / 2) + rough * smooth_noise(rng, n, int(part.extent / 4))


def _line(rng: Rng, part: Part, x: float, y: float, length: float, width: float) -> Map:
    """Return the distance to a slightly bent stroke, in half widths (1 on its side)."""
    gx, gy = make_grid(len(part.height), part.extent)
    angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.012, 0.012)
    along = (gx - x) * math.cos(angle) + (gy - y) * math.sin(angle)
    across = (gy - y) * math.cos(angle) - (gx - x) * math.sin(angle) - bend * along**2
    taper = np.sqrt(np.clip(1 - (2 * along / length) ** 2, 1e-4, 1))
    return np.abs(across) / (width / 2 * taper) + np.where(np.abs(along) > length / 2, np.float32(9), np.float32(0))


def _tint(albedo: Map, weight: Map, color: Map) -> Map:
    return (albedo + weight[..., None] * (color - albedo)).astype(np.float32)


def _break_feature(rng: Rng, part: Part) -> Map:
    """Return the height without one feature, whose foot stays as a low rough fracture."""
    x, y, radius, top = part.features[int(rng.random() * len(part.features))]
    n = len(part.height)
    gx, gy = make_grid(n, part.extent)
    foot = ramp((1 - np.hypot(gx - x, gy - y) / radius) / 0.6)
    torn = ramp((1.35 - np.hypot(gx - x, gy - y) / radius) / 0.35)
    return part.height - top * foot + torn * (0.9 * smooth_noise(rng, n, int(part.extent * 0.45)) - 1.0)


def _bend(rng: Rng, part: Part, x: float, y: float, ux: float, uy: float) -> Map:
    """Return the height with the material around an edge point bent smoothly up."""
    gx, gy = make_grid(len(part.height), part.extent)
    outward = (gx - x) * ux + (gy - y) * uy
    aside = (gy - y) * ux - (gx - x) * uy
    reach, width = rng.uniform(11, 15), rng.uniform(11, 14)
    lift = rng.uniform(4.5, 6.5) * ramp((outward + reach) / (reach + 5)) ** 1.5 * dome(np.abs(aside) / width)
    near = outward < 10
    return part.height + lift * near * part.cover


def add_defect(rng: Rng, part: Part, kind: str, variant: str) -> Part:
    """Return a copy of the part with one defect.

    Args:
        rng: the defect's own stream, so that the part stays the one that its own stream drew.
        part: left as it is.
        kind: a key of VARIANTS.
        variant: "rgb" changes colour alone, "xyz" shape alone, "both" both.
    """
    height, albedo, cover, gloss = part.height, part.albedo, part.cover, part.gloss
    size = rng.uniform(17, 24)
    x, y, ux, uy = _choose_place(rng, part, size, edge=kind == "feature")
    n = len(height)
    color = _choose_color(rng, part)
    floor = np.float32(0.5) * cover
    if kind in ("dent", "bump"):
        shape = _blob(rng, part, x, y, size, 0.05)
        if variant == "xyz":
            change = size * rng.uniform(0.14, 0.18) * dome(shape)
        else:
            spot = ramp((1 - shape) / 0.5)
            change = rng.uniform(2.8, 4.0) * spot
            albedo = _tint(albedo, spot * rng.uniform(0.75, 0.9) * cover, color)
        height = np.maximum(height - change, np.minimum(floor, height)) if kind == "dent" else height + change * cover
    elif kind == "hole":
        spot = ramp((1 - _blob(rng, part, x, y, rng.uniform(12, 16), 0.06)) / 0.12 + 0.5)
        height = height - np.minimum(height, rng.uniform(9, 14)) * spot
        albedo = _tint(albedo, spot * 0.85, np.asarray((0.06, 0.05, 0.05), np.float32))
        gloss = gloss * (1 - spot)
    elif kind == "cut":
        line = _line(rng, part, x, y, rng.uniform(22, 30), rng.uniform(4.0, 5.5))
        spot = ramp((1 - line) / 0.7) * cover
        if variant == "both":
            height = np.maximum(height - rng.uniform(4, 6) * spot, np.minimum(floor, height))
        albedo = _tint(albedo, ramp((1.1 - line) / 0.3) * 0.8 * cover, color)
    elif kind == "contamination":
        spot = ramp((1 - _blob(rng, part, x, y, size, 0.28)) / 0.25 + 0.5) * cover
        albedo = _tint(albedo, spot * 0.9, color * (1 + 0.10 * smooth_noise(rng, n, 40))[..., None])
        if variant == "both":
            lump = ramp((1 - _blob(rng, part, x, y, size, 0.10)) / 0.5) * cover
            height = height + lump * spot * (rng.uniform(2.6, 3.8) + 0.6 * smooth_noise(rng, n, int(part.extent / 2)))
    elif kind == "stain":
        spot = ramp((1 - _blob(rng, part, x, y, size * 1.1, 0.15)) / 0.45 + 0.3) * cover
        albedo = _tint(albedo, spot * rng.uniform(0.8, 0.95), color)
    else:
        broken = bool(part.features) and rng.random() < 0.5
        height = _break_feature(rng, part) if broken else _bend(rng, part, x, y, ux, uy)
        height = np.where(cover > 0, np.maximum(height, np.minimum(floor, part.height)), part.height)
    return replace(part, height=height.astype(np.float32), albedo=np.clip(albedo, 0, 1).astype(np.float32), gloss=gloss)
