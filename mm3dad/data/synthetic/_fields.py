"""Small tools for maps on a square grid: coordinates, profiles, smooth noise and even random numbers."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Map = NDArray[np.floating]
Rng = np.random.Generator
Feature = tuple[float, float, float, float]  # x, y, radius, height of a raised shape, mm


def make_grid(n: int, extent: float) -> tuple[Map, Map]:
    """Return x (1, n) and y (n, 1), millimetres: centres of n x n cells that cover [-extent, extent]."""
    line = ((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1) * np.float32(extent)
    return line[None, :], line[:, None]


def crop(n: int, extent: float, x: float, y: float, reach: float) -> tuple[tuple[slice, slice], Map, Map]:
    """Return the slices of the grid within `reach` mm of (x, y), and the offsets dx (1, w), dy (h, 1) from there."""
    gx, gy = make_grid(n, extent)
    columns, rows = (np.searchsorted(line.ravel(), [c - reach, c + reach]) for line, c in ((gx, x), (gy, y)))
    return (slice(*rows), slice(*columns)), gx[:, slice(*columns)] - np.float32(x), gy[slice(*rows)] - np.float32(y)


def ramp(value: Map) -> Map:
    """Return 0 below 0, 1 above 1 and a smooth cubic between."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def dome(radius: Map) -> Map:
    """Return a smooth bump cos^2 of a relative radius: 1 in the middle, 0 with zero slope from 1 on."""
    return np.cos(np.float32(np.pi / 2) * np.minimum(radius, 1)) ** 2


@lru_cache(maxsize=32)
def _basis(n: int, cells: int) -> csr_array:
    from scipy.sparse import csr_array

    place = (np.arange(n)[:, None] + 0.5) / n * cells
    weight = np.exp(-0.5 * ((place - np.arange(-2, cells + 3)) / 0.6) ** 2)
    weight[weight < 1e-4] = 0
    return csr_array((weight / np.sqrt((weight**2).sum(1, keepdims=True))).astype(np.float32))


def smooth_noise(rng: Rng, n: int, cells: int) -> Map:
    """Return an (n, n) Gaussian field of mean 0 and variance 1 with `cells` independent values a side.

    The draw does not depend on n, so that a sample keeps its look at every picture size. The product is sparse: it needs
    no BLAS, whose threads would fight with the worker processes and whose rounding depends on their number.
    """
    basis = _basis(n, cells)
    values = rng.standard_normal((cells + 5, cells + 5), dtype=np.float32)
    return np.ascontiguousarray((basis @ np.ascontiguousarray((basis @ values).T)).T)


def make_rng(*key: int | str) -> np.random.Generator:
    """Return a generator of its own for a key: the same key gives the same numbers, whatever ran before."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.default_rng(np.random.SeedSequence(words))


def draw_even(key: tuple[int | str, ...], index: int, names: tuple[str, ...]) -> dict[str, float]:
    """Return numbers in [0, 1) that, over consecutive indices, cover the range evenly (scrambled Halton).

    Light, size, tilt and noise are drawn this way: each stays uniform, but a test set of twenty good and
    thirty defective parts gets nearly the same histogram in both, so that chance does not give defects away.

    Args:
        key: names the sequence.
        index: place in the sequence, >= 0.
        names: at most ten.
    """
    numbers = {}
    for name, base in zip(names, (2, 3, 5, 7, 11, 13, 17, 19, 23, 29), strict=False):
        rng = make_rng(*key, name)
        rest, value, unit = index, 0.0, 1.0
        while unit > 1e-3:
            rest, digit = divmod(rest, base)
            unit /= base
            value += unit * int(rng.permutation(base)[digit])
        numbers[name] = value + unit * float(make_rng(*key, name, index).random())
    return numbers
