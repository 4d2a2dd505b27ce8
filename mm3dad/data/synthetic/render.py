"""The camera: where each pixel's ray meets the part or the table, and what colour it sees there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm3dad.data.synthetic._fields import Map, Rng, smooth_noise
from mm3dad.data.synthetic.parts import Part

FOCAL = 2.5  # focal length / image side: at 0.5 m the picture is 0.2 m wide
BASELINE = 100.0  # camera to projector along the rows, mm


@dataclass(frozen=True)
class Pose:
    """The table plane in camera coordinates (mm): origin, axes (columns x, y, normal to the camera)."""

    origin: NDArray[np.float64]
    axes: NDArray[np.float64]


@dataclass(frozen=True)
class Light:
    """A bright tent around the part plus one weak directed lamp.

    Args:
        exposure: overall brightness.
        color: (3,) colour of the light, mean 1.
        directed: share of the lamp in the light on a flat surface.
        direction: (3,) unit vector to the lamp, camera coordinates.
    """

    exposure: float
    color: Map
    directed: float
    direction: NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """What noiseless instruments would record: depth (mm), angles, colour, each (H, W) or (H, W, 3)."""

    depth: Map
    facing: Map  # cosine between the surface normal and the ray to the camera
    glare: Map  # strength of the mirror image of the projector, [0, 1]
    lit: NDArray[np.bool_]  # seen by the projector
    albedo: Map
    rgb: Map
    on_part: NDArray[np.bool_]


def draw_pose(rng: Rng, even: dict[str, float], turn: float) -> Pose:
    """Draw where the table stands (0.47 to 0.53 m away, tilted up to 6 degrees) and how the part lies on it."""
    tilt, lean = np.radians(1 + 5 * even["tilt"]), rng.uniform(0, 2 * np.pi)
    normal = np.asarray([np.sin(tilt) * np.cos(lean), np.sin(tilt) * np.sin(lean), -np.cos(tilt)])
    spin = np.radians(rng.uniform(-turn, turn))
    first = np.asarray([np.cos(spin), np.sin(spin), 0.0])
    first -= normal * (first @ normal)
    first /= np.linalg.norm(first)
    axes = np.stack([first, np.cross(first, normal), normal], 1)
    distance = 470 + 60 * even["distance"]
    return Pose(np.asarray([*rng.uniform(-7, 7, 2), distance]), axes)


def draw_light(rng: Rng, even: dict[str, float]) -> Light:
    """Draw brightness, colour temperature and the lamp."""
    warm = 0.06 * (2 * even["warmth"] - 1)
    around, high = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(50, 70))
    direction = np.asarray([np.cos(high) * np.cos(around), np.cos(high) * np.sin(around), -np.sin(high)])
    color = np.asarray([1 + warm, 1.0, 1 - warm], np.float32)
    return Light(0.82 + 0.36 * even["exposure"], color, rng.uniform(0.08, 0.16), direction)


def _shade_pits(height: Map) -> Map:
    """Return how much of the tent each place sees: places below their surroundings are darker."""
    from scipy.ndimage import uniform_filter

    small = np.ascontiguousarray(height[::4, ::4])
    reach = max(3, len(small) // 12) | 1
    around = uniform_filter(uniform_filter(small, reach, mode="nearest"), reach, mode="nearest")
    step = np.repeat(np.repeat(around, 4, 0), 4, 1)[: len(height), : len(height)]
    return np.clip(1 - 0.012 * np.maximum(0, step - height), 0.7, 1).astype(np.float32)


def _find_near(part: Part, u: Map, v: Map, du: Map, dv: Map) -> NDArray[np.intp]:
    """Return the rays that may meet the part or the ground within 20 mm of it, where it takes some light."""
    n, reach = len(part.height), 10 * len(part.height) / part.extent
    top, near = np.float32(part.height.max()), np.ones(u.size, bool)
    for place, move, axis in ((u, du, 0), (v, dv, 1)):
        covered = np.nonzero(part.cover.any(axis))[0]
        away = move * top
        near &= (place + np.maximum(away, 0) > max(covered[0] - reach, 1)) & (place + np.minimum(away, 0) < min(covered[-1] + reach, n - 1))
    return np.nonzero(near)[0]


def _march(height: Map, u: Map, v: Map, du: Map, dv: Map) -> Map:
    """Return the height (mm) at which each ray, at grid place u + du h, v + dv h for height h, first meets a height map."""
    n, flat, hit = len(height), height.ravel(), np.zeros(u.size, np.float32)
    # The levels do not depend on the map, so that a defect changes no pixel but its own.
    step = np.float32(np.clip(1.25 / max(float(np.sqrt((du**2 + dv**2).max(initial=0))), 1e-6), 0.5, 4))
    rays, above_before = np.arange(u.size), np.empty(0, np.float32)
    for level in range(int(np.ceil(height.max() / step)), -1, -1):
        h = level * step
        column = np.clip((u + du * h).astype(np.int32), 0, n - 1)
        row = np.clip((v + dv * h).astype(np.int32), 0, n - 1)
        above = flat[row * n + column] - h
        met = above >= 0
        gain = above[met] - above_before[met] if above_before.size else np.full(int(met.sum()), np.inf, np.float32)
        hit[rays[met]] = h + step * above[met] / np.maximum(gain, 1e-6)
        rays, u, v, du, dv, above_before = (values[~met] for values in (rays, u, v, du, dv, above))
        if not rays.size:
            break
    return hit


def _sample(stack: Map, u: Map, v: Map) -> Map:
    """Read an (n, n, C) stack bilinearly at columns u and rows v (cell centres at +0.5); C first in the answer."""
    n, channels = stack.shape[0], stack.shape[2]
    flat = stack.reshape(n * n, channels)
    found = np.empty((channels, u.size), np.float32)
    for start in range(0, u.size, 8192):  # blocks that fit the cache are several times faster than whole pictures
        block = slice(start, start + 8192)
        x = np.clip(u[block] - np.float32(0.5), np.float32(0), np.float32(n - 1.01))
        y = np.clip(v[block] - np.float32(0.5), np.float32(0), np.float32(n - 1.01))
        column, row = x.astype(np.int32), y.astype(np.int32)
        x, y, index = (x - column.astype(np.float32))[:, None], (y - row.astype(np.float32))[:, None], row * n + column
        upper, lower = flat[index], flat[index + n]
        upper += x * (flat[index + 1] - upper)
        lower += x * (flat[index + n + 1] - lower)
        upper += y * (lower - upper)
        found[:, block] = upper.T
    return found


def _half_cosine(normal: tuple[Map, Map, Map], toward: tuple[Map, Map, Map], lamp: NDArray[np.float64]) -> Map:
    """Return the cosine between the normal and the direction midway between the camera and a lamp."""
    x, y, z = (part + np.float32(part_lamp) for part, part_lamp in zip(toward, lamp, strict=True))
    cosine = (normal[0] * x + normal[1] * y + normal[2] * z) / np.sqrt(x * x + y * y + z * z)
    return np.clip(cosine, 0, 1)


def render(part: Part, pose: Pose, light: Light, table: Map, size: int) -> View:
    """Render one part on its table, without noise.

    Args:
        part: maps of the part.
        pose: of the table and the part on it.
        light: tent and lamp.
        table: (size, size, 3) float32 albedo of the table as the camera sees it.
        size: H = W in pixels.
    """
    focal, center = FOCAL * size, (size - 1) / 2
    line = ((np.arange(size) - center) / focal).astype(np.float32)
    axes, origin = pose.axes.astype(np.float32), (pose.origin @ pose.axes).astype(np.float32)
    local = [axes[0, k] * line[None, :] + axes[1, k] * line[:, None] + axes[2, k] for k in range(3)]  # rays in the table's axes
    ds, dt = local[0] / local[2], local[1] / local[2]
    s0, t0 = origin[2] * ds - origin[0], origin[2] * dt - origin[1]

    n, scale = len(part.height), np.float32(len(part.height) / (2 * part.extent))
    near = _find_near(part, *((values * scale).ravel() for values in (s0 + part.extent, t0 + part.extent, ds, dt)))
    s0, t0, ds_near, dt_near = (values.ravel()[near] for values in (s0, t0, ds, dt))
    u, v, du, dv = (s0 + part.extent) * scale, (t0 + part.extent) * scale, ds_near * scale, dt_near * scale
    height = _march(part.height, u, v, du, dv)
    slope_t, slope_s = np.gradient(part.height, 1 / float(scale))
    stack = np.empty((n, n, 9), np.float32)
    stack[..., :3] = part.albedo * part.cover[..., None]
    for channel, values in enumerate((part.cover, part.gloss, slope_s, slope_t, _shade_pits(part.height), part.height), 3):
        stack[..., channel] = values
    *paint, alpha, gloss, slope_s, slope_t, open_sky, exact = _sample(stack, u + du * height, v + dv * height)
    # On a wall the march knows the height better than the map does; elsewhere the map is exact.
    height = np.where(np.abs(exact - height) < 1.0, exact, height)

    upright = 1 / np.sqrt(1 + slope_s * slope_s + slope_t * slope_t)
    normal = (-slope_s * upright, -slope_t * upright, upright)
    far = 1 / np.sqrt(1 + ds * ds + dt * dt)
    far_near = far.ravel()[near]
    toward = (ds_near * far_near, dt_near * far_near, far_near)
    lamp, projector = light.direction @ pose.axes, (np.asarray([BASELINE, 0, 0]) - pose.origin) @ pose.axes
    shine = gloss * _half_cosine(normal, toward, lamp) ** 24
    # The tent sends light from everywhere and the table gives most of its share back: a tilt costs little.
    tent = (1 - 0.1 * (1 - upright)) * open_sky
    lx, ly, lz = lamp.astype(np.float32)
    directed = np.maximum(normal[0] * lx + normal[1] * ly + normal[2] * lz, 0) / lz
    share = np.float32(light.directed)
    shade, shine = (1 - share) * tent + share * directed, 0.25 * share * shine

    # The rest of the picture is the bare table: flat, matt and fully lit.
    depth, facing, glare, cover = origin[2] / local[2], far, np.zeros_like(far), np.zeros_like(far)
    tint = np.float32(light.exposure) * light.color
    albedo, rgb = table.copy(), table * tint
    depth.ravel()[near] = (height + origin[2]) / local[2].ravel()[near]
    facing.ravel()[near] = normal[0] * toward[0] + normal[1] * toward[1] + normal[2] * toward[2]
    glare.ravel()[near] = gloss * _half_cosine(normal, toward, projector / np.linalg.norm(projector)) ** 6000
    cover.ravel()[near] = alpha
    color = np.stack(paint, -1) + (1 - alpha)[:, None] * table.reshape(-1, 3)[near]
    albedo.reshape(-1, 3)[near] = color
    rgb.reshape(-1, 3)[near] = (color * shade[:, None] + shine[:, None]) * tint
    return View(depth, facing, glare, _find_lit(depth, focal), albedo, rgb, cover > 0.5)


def _find_lit(depth: Map, focal: float) -> NDArray[np.bool_]:
    """Return what the projector sees: along a row, its columns of visible points must not run backwards."""
    seen = np.arange(depth.shape[1], dtype=np.float32) - np.float32(focal * BASELINE) / depth
    nearest = np.minimum.accumulate(seen[:, ::-1], axis=1)[:, ::-1]
    return seen <= nearest + np.float32(0.5)


def draw_table(rng: Rng, even: dict[str, float], size: int) -> Map:
    """Draw the matt table as the camera sees it: (size, size, 3) albedo."""
    hue = (1 + 0.03 * rng.standard_normal(3)).astype(np.float32)
    color = np.asarray((0.17, 0.18, 0.20), np.float32) * (0.75 + 0.5 * even["table"]) * hue
    return (1 + 0.05 * smooth_noise(rng, size, 5) + 0.03 * smooth_noise(rng, size, 130))[..., None] * color
