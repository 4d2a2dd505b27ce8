"""Still pictures of a cloud by a depth-sorted splat: numpy only, no display, a few tens of milliseconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mm3dad.errors import ShapeError
from mm3dad.view.colors import PAGE, Array, Picture
from mm3dad.view.normals import toward_viewer

_FINE = 2  # drawn at twice the size and averaged, for smooth edges
_STAMP = 16  # a point never covers more than this many fine pixels squared


def view_axes(azimuth: float, elevation: float) -> NDArray[np.float64]:
    """Return the rotation (3, 3) from (right, up, toward the sensor) to (right, up, toward the eye) of the picture.

    Args:
        azimuth: degrees, turns the part anticlockwise about the sensor's line of sight.
        elevation: degrees of the eye over the table; 90 looks along the sensor's line of sight.
    """
    turn, lean = np.deg2rad(azimuth), np.deg2rad(90.0 - elevation)
    about_sight = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_right = np.array([[1, 0, 0], [0, np.cos(lean), np.sin(lean)], [0, -np.sin(lean), np.cos(lean)]])
    return about_right @ about_sight


def splat(
    xyz: Array,
    valid: NDArray[np.bool_],
    colors: Array,
    size: tuple[int, int] = (240, 320),
    azimuth: float = -20.0,
    elevation: float = 50.0,
    *,
    dark: bool = False,
    steady: bool = False,
) -> Picture:
    """Draw a cloud as a surface: parallel projection, nearer points over farther ones, edges darkened by depth.

    The frame follows the inner 98 % of the points, so that a stray point does not shrink the part to a dot. Points are as
    large as their spacing, and single holes are filled, so that the cloud reads as a surface.

    Args:
        xyz: (3, H, W) float32, metres; H = 1 for a cloud without a grid.
        valid: (H, W) bool.
        colors: (3, H, W) float32 in [0, 1].
        size: (h, w) of the picture in pixels.
        azimuth: degrees about the sensor's line of sight.
        elevation: degrees of the eye over the table, 90 is the sensor's own view.
        dark: dark background instead of white.
        steady: a scale that is the same from every side, for pictures that turn; else as large as this side allows.

    Returns:
        (h, w, 3) uint8.

    Raises:
        ShapeError: arrays that do not belong together, or an empty picture.
    """
    light, cover = _draw(xyz, valid, colors, size, azimuth, elevation, steady)
    paper = np.array(PAGE[dark], np.float32)
    return np.asarray((light + (1 - cover[..., None]) * paper).round(), np.uint8)


def splat_clear(
    xyz: Array,
    valid: NDArray[np.bool_],
    colors: Array,
    size: tuple[int, int] = (240, 320),
    azimuth: float = -20.0,
    elevation: float = 50.0,
) -> Picture:
    """Draw a cloud as `splat` does, on nothing: for a page that is light for one reader and dark for another.

    Returns:
        (h, w, 4) uint8; the last channel is 0 where no point is.
    """
    light, cover = _draw(xyz, valid, colors, size, azimuth, elevation, False)
    color = light / np.maximum(cover, 1e-6)[..., None]
    return np.concatenate([color, 255 * cover[..., None]], -1).round().astype(np.uint8)


def _draw(
    xyz: Array, valid: NDArray[np.bool_], colors: Array, size: tuple[int, int], azimuth: float, elevation: float, steady: bool
) -> tuple[Array, Array]:
    """Return the light that comes from the points (h, w, 3), 0 to 255, and the share of each pixel that they cover (h, w)."""
    xyz, colors, valid = np.asarray(xyz), np.asarray(colors), np.asarray(valid, bool)
    if xyz.ndim != 3 or xyz.shape[0] != 3 or xyz.shape != colors.shape or xyz.shape[1:] != valid.shape:
        raise ShapeError(
            f"splat needs xyz and colors (3, H, W) and valid (H, W) of one size, got {xyz.shape}, {colors.shape} and {valid.shape}; "
            "resample them to one grid"
        )
    if min(size) < 1:
        raise ShapeError(f"the picture's size must be at least (1, 1), got {tuple(size)}; give (height, width) in pixels")
    height, width = size[0] * _FINE, size[1] * _FINE
    index = np.flatnonzero(valid)
    index = index[:: max(1, index.size // (2 * height * width))]
    if index.size == 0:
        return np.zeros((*size, 3), np.float32), np.zeros(size, np.float32)
    up_y, up_z = toward_viewer(xyz, valid)
    points = xyz.reshape(3, -1)[:, index].astype(np.float64) * np.array([[1.0], [up_y], [up_z]])
    turned = (view_axes(azimuth, elevation) @ points).astype(np.float32)
    thin = slice(None, None, max(1, index.size // 20_000))
    low, high = np.quantile(turned[:, thin], [0.01, 0.99], axis=1)
    extent = np.maximum(high - low, 1e-9)
    if steady:  # from the side that needs most room, the eye not too steep
        longest = float(np.linalg.norm(np.ptp(np.quantile(points[:, thin], [0.01, 0.99], axis=1), axis=0)))
        scale = 0.9 * min(width, 1.15 * height) / max(longest, 1e-9)
    else:
        scale = 0.9 * min(width / extent[0], height / extent[1])
    if not np.isfinite(scale) or extent[:2].max() <= 1e-9:
        scale = 0.0  # all points in one place
    middle = (low + high) / 2
    column = np.rint((turned[0] - middle[0]) * scale + (width - 1) / 2).astype(np.int64)
    row = np.rint((middle[1] - turned[1]) * scale + (height - 1) / 2).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    order = np.flatnonzero(inside)[np.argsort(turned[2, inside], kind="stable")]
    facing = np.ptp(np.quantile(points[:2, thin], [0.01, 0.99], axis=1), axis=0)
    stamp = _stamp_size(facing * scale, order.size)
    nearest = _stamp_points(row[order], column[order], (height, width), stamp)
    nearest = _fill_holes(nearest)
    drawn = nearest >= 0
    seen = order[nearest[drawn]]
    depth = np.full(nearest.shape, -np.inf, np.float32)
    depth[drawn] = turned[2, seen]
    light = _edge_light(depth, float(extent[2]))[drawn] * np.float32(255)
    picture = np.zeros((3, height, width), np.float32)
    for channel, value in zip(picture, colors.reshape(3, -1), strict=True):
        channel[drawn] = np.clip(value[index[seen]], 0, 1) * light
    coarse = picture.reshape(3, size[0], _FINE, size[1], _FINE).mean((2, 4))
    cover = drawn.reshape(size[0], _FINE, size[1], _FINE).mean((1, 3), dtype=np.float32)
    return np.moveaxis(coarse, 0, -1), cover


def _stamp_size(extent: NDArray[np.float64], count: int) -> int:
    """Return the side of a point in fine pixels: the sensor's spacing of `count` points over the picture, and a little more."""
    spacing = np.sqrt(max(extent[0], 1.0) * max(extent[1], 1.0) / max(count, 1))
    return int(np.clip(np.ceil(1.5 * spacing) + 1, 2, _STAMP))


def _stamp_points(row: NDArray[np.int64], column: NDArray[np.int64], size: tuple[int, int], stamp: int) -> NDArray[np.int32]:
    """Write each point's number into a square of pixels; points come farthest first, and the last write stays."""
    height, width = size
    buffer = np.full((height + stamp) * (width + stamp), -1, np.int32)
    corner = (row * (width + stamp) + column)[:, None]
    steps = (np.arange(stamp)[:, None] * (width + stamp) + np.arange(stamp)).ravel()
    buffer[(corner + steps).ravel()] = np.repeat(np.arange(row.size, dtype=np.int32), stamp * stamp)
    half = stamp // 2
    return buffer.reshape(height + stamp, width + stamp)[half : half + height, half : half + width]


def _fill_holes(nearest: NDArray[np.int32]) -> NDArray[np.int32]:
    """Give an empty pixel its nearest-to-the-eye neighbour where at least 5 of its 8 neighbours are drawn."""
    filled = nearest
    for _ in range(2):
        padded = np.pad(filled, 1, constant_values=-1)
        count, front = np.zeros(nearest.shape, np.uint8), nearest
        for i, j in ((i, j) for i in range(3) for j in range(3)):
            around = padded[i : i + nearest.shape[0], j : j + nearest.shape[1]]
            count += around >= 0
            front = np.maximum(front, around)
        filled = np.where((filled < 0) & (count >= 5), front, filled)
    return filled


def _edge_light(depth: Array, extent: float) -> Array:
    """Darken pixels that lie behind their neighbours (eye-dome lighting, Boucheny 2009): it shows shape without normals."""
    unit = max(extent, 1e-9)
    drawn = depth > -np.inf
    base = np.where(drawn, depth, 0)
    padded = np.pad(depth, 2, constant_values=-np.inf)
    behind = np.zeros(depth.shape, np.float32)
    height, width = depth.shape
    for down, right in ((0, 2), (4, 2), (2, 0), (2, 4)):
        other = padded[down : down + height, right : right + width]
        gap = np.where(drawn & (other > -np.inf), other - base, 0)
        behind += np.clip(gap / unit, 0, 0.25)
    return np.asarray(np.exp(-2.2 * behind), np.float32)
