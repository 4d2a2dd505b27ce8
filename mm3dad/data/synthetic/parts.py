"""The parts: height, colour and gloss of each category as maps in the part's own plane (millimetres)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mm3dad.data.synthetic._fields import Feature, Map, Rng, crop, dome, make_grid, ramp, smooth_noise
from mm3dad.data.synthetic._shapes import add_features, box_inside, paint, ring_of


@dataclass
class Part:
    """One part, seen along the normal of the plane it lies on.

    Args:
        extent: half the side of the grid, mm.
        height: (n, n) float32 above the plane, mm; 0 where the plane shows.
        cover: (n, n) float32 in [0, 1], 1 on the part.
        albedo: (n, n, 3) float32 in [0, 1].
        gloss: (n, n) float32 in [0, 1].
        surface: (n, n) bool, where a defect may have its centre: seen by camera and projector.
        features: (x, y, radius, height) in mm of small raised shapes of the part's own colour.
        turn: largest in-plane rotation, degrees.
    """

    extent: float
    height: Map
    cover: Map
    albedo: Map
    gloss: Map
    surface: NDArray[np.bool_]
    features: list[Feature] = field(default_factory=list)
    turn: float = 180.0


def make_gasket(rng: Rng, n: int, tone: float, scale: float) -> Part:
    """A flat lobed rubber ring with bolt holes and a sealing bead."""
    x, y = make_grid(n, 80)
    radius, angle = np.hypot(x, y) / scale, np.arctan2(y, x)
    outer, inner = 50 + 6 * np.cos(3 * angle) + rng.normal(0, 0.7), 23 + rng.normal(0, 0.7)
    inside = np.minimum(outer - radius, radius - inner)
    for bolt in range(3):
        a = bolt * 2 * np.pi / 3
        inside = np.minimum(inside, np.hypot(x / scale - 48 * math.cos(a), y / scale - 48 * math.sin(a)) - 3.6)
    cover = ramp(inside / 0.8 + 0.5)
    bead = np.exp(-0.5 * ((radius - 29) / 1.6) ** 2)
    height = cover * (4.0 + rng.normal(0, 0.25) + 1.0 * bead + 0.35 * smooth_noise(rng, n, 3))
    features = ring_of(rng, 6, 39 * scale, 4.5, 2.0, np.pi / 6)
    add_features(height, 80, features)
    albedo = paint(rng, n, (0.30, 0.36, 0.38), tone)
    return Part(80, height, cover, albedo, np.full((n, n), 0.10, np.float32), (inside > 3) & (radius < 46), features)


def make_turned_part(rng: Rng, n: int, tone: float, scale: float) -> Part:
    """A stepped metal disc from a lathe: flange, shoulder, hub and bore, with fine turning marks."""
    x, y = make_grid(n, 80)
    radius = np.hypot(x, y) / scale
    levels = [(52, 9.0), (30, 6.0), (15, 7.0), (6.5, -16.0)]
    height = np.zeros((n, n), np.float32)
    for edge, step in levels:
        height += np.float32(step + rng.normal(0, 0.25)) * ramp((edge + rng.normal(0, 0.3) - radius) / 1.2 + 0.5)
    cover = ramp((52 - radius) / 0.8 + 0.5)
    features = ring_of(rng, 8, 41 * scale, 5.0, 3.0)
    add_features(height, 80, features)
    albedo = paint(rng, n, (0.60, 0.61, 0.64), tone, 0.02, 0.02)
    marks = np.sin(radius * rng.uniform(2.1, 2.7) + rng.uniform(0, 6)) * (0.5 + 0.5 * np.sin(radius * 0.7 + rng.uniform(0, 6)))
    albedo *= (1 + 0.05 * marks)[..., None]
    surface = (radius > 10) & (radius < 47)
    return Part(80, height * (cover > 0), cover, albedo, np.full((n, n), 0.5, np.float32), surface, features)


def make_cookie(rng: Rng, n: int, tone: float, scale: float) -> Part:
    """A baked disc: uneven edge, browned rim, bubbly crust and chocolate chips wherever they fell."""
    x, y = make_grid(n, 80)
    radius = np.hypot(x * (1 + rng.normal(0, 0.02)), y) / scale + 1.1 * smooth_noise(rng, n, 9)
    cover = ramp((47 - radius) / 1.0 + 0.5)
    rise = np.sqrt(np.clip(1 - (radius / 48.5) ** 4, 0, 1))
    height = cover * np.maximum(1.0, 11 * rise + 0.3 * smooth_noise(rng, n, 16) + 0.16 * smooth_noise(rng, n, 45))
    albedo = paint(rng, n, (0.74, 0.55, 0.34), tone, 0.05, 0.045)
    albedo *= (1 - 0.35 * ramp((radius - 34) / 14))[..., None] ** np.asarray([0.7, 1.0, 1.3], np.float32)
    for _ in range(rng.integers(11, 17)):
        a, d = rng.uniform(0, 2 * np.pi), 40 * math.sqrt(rng.uniform(0, 1))
        window, dx, dy = crop(n, 80, d * math.cos(a), d * math.sin(a), 6)
        chip = ramp((rng.uniform(2.6, 4.2) - np.hypot(dx, dy * rng.uniform(0.8, 1.2))) / 1.2 + 0.5)
        albedo[window] += chip[..., None] * 0.9 * (np.asarray([0.21, 0.12, 0.08], np.float32) - albedo[window])
        height[window] += chip * rng.uniform(0.6, 1.4) * cover[window]
    features = ring_of(rng, 5, 24 * scale, 5.0, 2.2, rng.uniform(0, 6))
    add_features(height, 80, features)
    return Part(80, height, cover, albedo, np.full((n, n), 0.05, np.float32), radius < 38, features)


def make_potato(rng: Rng, n: int, tone: float, scale: float) -> Part:
    """A grown, lumpy half-ellipsoid with shallow eyes and a mottled skin."""
    x, y = make_grid(n, 80)
    long, wide, tall = 54 * scale + rng.normal(0, 2), 39 * scale + rng.normal(0, 2), 30 + rng.normal(0, 2)
    rho = np.sqrt((x / long) ** 2 + (y / wide + 0.12 * (x / long) ** 2 * rng.uniform(-1, 1)) ** 2) + 0.035 * smooth_noise(rng, n, 4)
    cover = ramp((1 - rho) * 36 / 1.0 + 0.5)
    round_top = np.sqrt(np.clip(1 - np.clip(rho, 0, 1) ** 2.2, 0, 1))
    height = cover * (8 + tall * 0.75 * round_top + 0.5 * smooth_noise(rng, n, 9))
    albedo = paint(rng, n, (0.70, 0.55, 0.36), tone, 0.06, 0.05)
    spots = ramp((smooth_noise(rng, n, 30) - 1.5) / 0.8)
    albedo *= (1 - 0.22 * spots)[..., None]
    for _ in range(rng.integers(5, 9)):
        ex, ey = rng.uniform(-0.65, 0.65) * long, rng.uniform(-0.6, 0.6) * wide
        window, dx, dy = crop(n, 80, ex, ey, 4)
        eye = dome(np.hypot(dx / 1.5, dy) / rng.uniform(1.8, 2.6))
        height[window] -= 0.9 * eye
        albedo[window] *= (1 - 0.25 * eye)[..., None]
    features = [
        (float(0.45 * long * math.cos(a)), float(0.45 * wide * math.sin(a)), 6.5, 2.6) for a in rng.uniform(0, 6) + np.arange(3) * 2.1
    ]
    add_features(height, 80, features)
    return Part(80, height, cover, albedo, np.full((n, n), 0.08, np.float32), rho < 0.7, features)


def make_cable(rng: Rng, n: int, tone: float, scale: float) -> Part:
    """A twisted cable laid in a bow, with a metal sleeve on each end."""
    from scipy.ndimage import distance_transform_edt

    x, y = make_grid(n, 80)
    t = np.linspace(0, 1, 700, dtype=np.float32)
    swing, bow = 26 * scale * (1 + rng.normal(0, 0.08)), rng.normal(0, 2.5)
    path = np.stack([(t - 0.5) * 118 * scale - 4 * np.sin(4 * np.pi * t), swing * np.sin(2 * np.pi * t + rng.normal(0, 0.1)) + bow * t], 1)
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))]).astype(np.float32)
    tangent = np.gradient(path, axis=0) / np.hypot(*np.gradient(path, axis=0).T)[:, None]
    owner = np.zeros((n, n), np.int32)
    column, row = ((path / 160 + 0.5) * n).astype(int).T
    owner[row, column] = np.arange(len(t)) + 1
    nearest = distance_transform_edt(owner == 0, return_distances=False, return_indices=True)
    index = owner[tuple(nearest)] - 1
    dx, dy = x - path[index, 0], y - path[index, 1]
    aside = tangent[index, 0] * dy - tangent[index, 1] * dx
    ahead = tangent[index, 0] * dx + tangent[index, 1] * dy
    length = along[index] + ahead
    sleeve = ramp((13 - np.minimum(length, along[-1] - length)) / 0.8 + 0.5)
    thick = 8.0 + 1.2 * sleeve + rng.normal(0, 0.15)
    gap = np.hypot(aside, np.maximum(0, np.maximum(-length, length - along[-1])))
    cover = ramp((thick - gap) / 0.8 + 0.5)
    angle = np.arcsin(np.clip(aside / thick, -1, 1))
    strand = np.abs(np.sin(np.pi * length / 12 + angle + rng.uniform(0, 6))) * (1 - sleeve)
    height = cover * (thick + np.sqrt(np.clip(thick**2 - gap**2, 0, None)) + 1.0 * strand * np.cos(angle) - 0.3)
    albedo = paint(rng, n, (0.72, 0.42, 0.20), tone)
    albedo *= (0.74 + 0.26 * strand)[..., None]
    albedo += sleeve[..., None] * (paint(rng, n, (0.56, 0.57, 0.60), tone, 0.02) - albedo)
    gloss = np.float32(0.12) + 0.35 * sleeve
    surface = (gap < 4) & (length > 16) & (length < along[-1] - 16)
    return Part(80, height.astype(np.float32), cover, albedo.astype(np.float32), gloss, surface, [], 180.0)


def make_deep_rim(rng: Rng, n: int, tone: float, scale: float) -> Part:
    """An enamelled pot: a high rim whose inner lip overhangs the wall, a floor with rings and bosses far below."""
    x, y = make_grid(n, 80)
    radius = np.hypot(x, y) / scale
    top, floor = 30 + rng.normal(0, 1.5), 7 + rng.normal(0, 0.7)
    lip = 42 + rng.normal(0, 0.5)
    cover = ramp((55 - radius) / 0.8 + 0.5)
    rim = ramp((radius - lip) / 0.6 + 0.5)
    crown = top - 0.06 * (radius - 48.5) ** 2
    base = floor + 0.8 * np.cos(radius * 0.75) * ramp((34 - radius) / 3) + 0.25 * smooth_noise(rng, n, 4)
    height = cover * (rim * crown + (1 - rim) * base)
    features = ring_of(rng, 4, 17 * scale, 5.0, 2.6, rng.uniform(0, 6))
    add_features(height, 80, features)
    albedo = paint(rng, n, (0.70, 0.72, 0.66), tone, 0.03, 0.02)
    albedo += ramp((radius - lip) / 0.6 + 0.5)[..., None] * 0.8 * (paint(rng, n, (0.30, 0.42, 0.58), tone, 0.03, 0.02) - albedo)
    surface = (radius < 25) | ((radius > 46) & (radius < 51))
    return Part(80, height, cover, albedo, np.full((n, n), 0.3, np.float32), surface, features)


def make_textured_sheet(rng: Rng, n: int, tone: float, scale: float) -> Part:
    """A woven and embossed mat that fills most of the picture and lies a little wavy."""
    x, y = make_grid(n, 110)
    half = 92 * scale
    edge = half - np.maximum(np.abs(x), np.abs(y)) + 0.5 * smooth_noise(rng, n, 12)
    cover = ramp(edge / 0.9 + 0.5)
    pitch = 7.0 * (1 + rng.normal(0, 0.02))
    warp, weft = np.cos(np.pi * x / pitch + rng.uniform(0, 6)), np.cos(np.pi * y / pitch + rng.uniform(0, 6))
    lift = warp * weft
    height = cover * (5 + 0.5 * np.abs(warp) + 0.5 * np.abs(weft) + 0.4 * lift + 0.9 * smooth_noise(rng, n, 3))
    grid = (np.arange(5) - 2) * 36.0 * scale
    features = [(float(gx), float(gy), 6.0, float(2.4 + rng.normal(0, 0.12))) for gx in grid for gy in grid]
    add_features(height, 110, features)
    albedo = paint(rng, n, (0.42, 0.50, 0.60), tone, 0.03, 0.03)
    albedo *= (1 + 0.12 * lift + 0.05 * np.abs(warp))[..., None]
    surface = edge > 20
    return Part(110, height, cover, albedo.astype(np.float32), np.full((n, n), 0.06, np.float32), surface, features, 10.0)


def make_assembled_part(rng: Rng, n: int, tone: float, scale: float) -> Part:
    """A housing on a base plate: four screws, a motor block with a printed label, a dark connector, pins."""
    x, y = make_grid(n, 80)
    x, y = x / scale, y / scale
    plate = box_inside(x, y, 0, 0, 110, 80, 8)
    cover = ramp(plate / 0.8 + 0.5)
    height = cover * (7 + rng.normal(0, 0.2) + 0.15 * smooth_noise(rng, n, 3))
    albedo = paint(rng, n, (0.55, 0.60, 0.52), tone, 0.025, 0.02)
    gloss = np.full((n, n), 0.15, np.float32)
    jx, jy = rng.normal(0, 0.8), rng.normal(0, 0.8)
    block = ramp(box_inside(x, y, -14 + jx, 8 + jy, 52, 34, 4) / 1.2 + 0.5)
    height += block * (14 + rng.normal(0, 0.4))
    albedo += block[..., None] * (paint(rng, n, (0.62, 0.64, 0.68), tone, 0.02, 0.02) - albedo)
    plug = ramp(box_inside(x, y, 34, 12 + rng.normal(0, 0.6), 18, 26) / 1.0 + 0.5)
    height += plug * 9
    albedo += plug[..., None] * (np.asarray([0.22, 0.22, 0.24], np.float32) - albedo)
    lx, ly = -24 + jx + rng.normal(0, 0.6), 8 + jy + rng.normal(0, 0.6)
    label = ramp(box_inside(x, y, lx, ly, 24, 18, 0.6) / 0.5 + 0.5)
    lines = (np.sin((y - ly) * 1.9) > 0.35) * (np.sin((x - lx) * 2.6 + 2 * np.sin((y - ly) * 0.9)) > -0.55)
    ink = np.float32(0.85) - 0.55 * lines * ramp(box_inside(x, y, lx, ly, 21, 15, 0.6) / 0.5 + 0.5)
    albedo += label[..., None] * (ink[..., None] - albedo)
    for sx, sy in ((-48, -33), (48, -33), (-48, 33), (48, 33)):
        window, dx, dy = crop(n, 80, sx * scale, sy * scale, 6.5)
        dx, dy = dx / scale, dy / scale
        distance, a = np.hypot(dx, dy), rng.uniform(0, np.pi)
        slot = ramp((0.9 - np.abs(dx * math.sin(a) - dy * math.cos(a))) / 0.5 + 0.5)
        head = ramp((5 - distance) / 0.6 + 0.5)
        height[window] += head * (2.6 - 0.05 * distance**2 - 1.0 * slot)
        albedo[window] += head[..., None] * (0.50 - 0.2 * slot[..., None] - albedo[window])
        gloss[window] = np.maximum(gloss[window], 0.5 * head)
    features = [(float(px * scale), float(-22 * scale), 4.6, float(3.2 + rng.normal(0, 0.12))) for px in (-28, -12, 4, 20)]
    add_features(height, 80, features)
    surface = (plate > 7) & (np.abs(box_inside(x, y, -14, 8, 52, 34, 4)) > 4) & (np.abs(box_inside(x, y, 34, 12, 18, 26)) > 4)
    return Part(80, height.astype(np.float32), cover, albedo.astype(np.float32), gloss, surface, features, 10.0)


PARTS: dict[str, Callable[[Rng, int, float, float], Part]] = {
    "assembled_part": make_assembled_part,
    "cable": make_cable,
    "cookie": make_cookie,
    "deep_rim": make_deep_rim,
    "gasket": make_gasket,
    "potato": make_potato,
    "textured_sheet": make_textured_sheet,
    "turned_part": make_turned_part,
}
