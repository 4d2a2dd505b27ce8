"""Colours of every picture: a perceptually even heat map, one scale for many samples, overlays.

Pictures are (H, W, 3) uint8 numpy arrays; maps are (H, W) float arrays in which NaN means "no value".
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Array = NDArray[np.float32]

TRUTH = (0, 200, 255)  # cyan: the one hue that the heat map never takes
MISSING = (44, 46, 54)  # pixels without a measured point
PAGE = {False: (255, 255, 255), True: (24, 25, 30)}  # background, by `dark`

# Control points in OKLCh: lightness, chroma, hue in degrees. Hue runs blue -> purple -> red -> yellow while lightness only
# rises, so that order survives greyscale print and the common colour blindnesses.
_CONTROL = (
    (0.10, 0.020, 285.0),
    (0.24, 0.110, 292.0),
    (0.38, 0.160, 325.0),
    (0.52, 0.180, 372.0),
    (0.65, 0.190, 396.0),
    (0.78, 0.165, 430.0),
    (0.89, 0.160, 455.0),
    (0.97, 0.090, 466.0),
)


def oklab_to_srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn (..., 3) OKLab into sRGB in [0, 1] (Ottosson 2020, "A perceptual color space for image processing")."""
    to_lms = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]])
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(((lab @ to_lms.T) ** 3) @ to_rgb.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@functools.lru_cache(maxsize=1)
def heat_table() -> Picture:
    """Return the heat map's 256 colours (256, 3) uint8, spaced at equal distances in OKLab."""
    control = np.array(_CONTROL)
    dense = np.stack([np.interp(np.linspace(0, len(control) - 1, 2048), np.arange(len(control)), column) for column in control.T], 1)
    hue = np.deg2rad(dense[:, 2])
    lab = np.stack([dense[:, 0], dense[:, 1] * np.cos(hue), dense[:, 1] * np.sin(hue)], 1)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))])
    even = np.stack([np.interp(np.linspace(0, length[-1], 256), length, column) for column in lab.T], 1)
    table = (oklab_to_srgb(even) * 255).round().astype(np.uint8)
    table.setflags(write=False)
    return table


@functools.lru_cache(maxsize=1)
def group_table() -> Picture:
    """Return 64 colours (64, 3) uint8 of two lightnesses for numbered groups; following numbers differ by the golden angle in hue."""
    hue = np.deg2rad(np.arange(64) * 137.508)
    lightness = np.where(np.arange(64) % 2, 0.62, 0.78)
    lab = np.stack([lightness, 0.12 * np.cos(hue), 0.12 * np.sin(hue)], 1)
    table = (oklab_to_srgb(lab) * 255).round().astype(np.uint8)
    table.setflags(write=False)
    return table


@dataclass(frozen=True)
class Scale:
    """The scores that get the first and the last colour; shared by all samples that are compared.

    Args:
        low: score of the coldest colour.
        high: score of the hottest colour, > low.
    """

    low: float
    high: float

    def apply(self, values: Array) -> Array:
        """Return `values` in [0, 1]; NaN becomes 0."""
        unit = (np.asarray(values, np.float32) - np.float32(self.low)) / np.float32(max(self.high - self.low, 1e-12))
        return np.clip(np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)


def shared_scale(maps: Iterable[Array], threshold: float | None = None) -> Scale:
    """Choose one scale for several maps, so that the same colour is the same score in every picture.

    The scale starts at the median, the normal level. With a threshold it ends no lower than one and a half times the way to
    it: the noise of a set of good parts then stays cold instead of being stretched to red.

    Args:
        maps: (H, W) float arrays; NaN is skipped.
        threshold: image threshold, on the same scale as the maps.
    """
    values = [np.asarray(one, np.float32).ravel() for one in maps]
    values = [one[np.isfinite(one)][:: max(1, one.size // 50_000)] for one in values]
    pooled = np.concatenate(values) if values else np.zeros(0, np.float32)
    if pooled.size == 0:
        return Scale(0.0, max(1.0, 1.5 * threshold if threshold else 1.0))
    low, high = float(np.median(pooled)), float(np.quantile(pooled, 0.999))
    if threshold is not None and np.isfinite(threshold) and threshold > low:
        high = max(high, low + 1.5 * (threshold - low))
    return Scale(low, high if high > low else low + 1.0)


def heat_picture(values: Array, scale: Scale) -> Picture:
    """Colour a map (H, W) -> (H, W, 3) uint8."""
    return heat_table()[(scale.apply(values) * 255).round().astype(np.uint8)]


def overlay_heat(base: Picture, values: Array, scale: Scale, strength: float = 0.85) -> Picture:
    """Lay heat over a picture; cold pixels keep the (greyed) picture, so that the eye finds the place on the part.

    Args:
        base: (H, W, 3) uint8.
        values: (H, W) float, the map.
        scale: shared by the pictures that are compared.
        strength: opacity of the hottest colour, 0 to 1.
    """
    grey = base.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    quiet = 0.35 * base + 0.45 * grey[..., None]
    opacity = (strength * np.clip(scale.apply(values) * 2.2, 0, 1))[..., None]
    return (quiet * (1 - opacity) + heat_picture(values, scale) * opacity).round().astype(np.uint8)


def outline_mask(picture: Picture, mask: NDArray[np.bool_], color: tuple[int, int, int] = TRUTH, width: int = 2) -> Picture:
    """Draw the border of a mask (H, W) onto a copy of the picture; the line lies outside the defect, which stays visible."""
    grown = np.pad(mask.astype(bool), width)
    for _ in range(width):
        step = grown.copy()
        step[1:] |= grown[:-1]
        step[:-1] |= grown[1:]
        step[:, 1:] |= grown[:, :-1]
        step[:, :-1] |= grown[:, 1:]
        grown = step
    inner = slice(width, -width)
    drawn = picture.copy()
    drawn[grown[inner, inner] & ~mask.astype(bool)] = color
    return drawn


def to_picture(rgb: Array) -> Picture:
    """Turn (3, H, W) float in [0, 1] into (H, W, 3) uint8."""
    return (np.clip(np.moveaxis(np.asarray(rgb, np.float32), 0, -1), 0, 1) * 255).round().astype(np.uint8)
