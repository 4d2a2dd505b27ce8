"""AUPRO as two published codes compute it, re-implemented from the multimodal sheet (part 2), steps and loops as described."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

EIGHT = np.ones((3, 3), dtype=int)


def published(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3, thresholds: int = 100) -> float:
    """The evaluation code of MVTec 3D-AD that BTF, M3DM and Shape-Guided share.

    The pool of normal scores and the scores of each region are sorted; at each threshold, taken at equal steps of rank of the pool,
    the share of each region above it is looked up, region by region.
    """
    regions = []
    for values, mask in zip(maps, masks, strict=True):
        numbered, count = label(mask, structure=EIGHT)
        regions += [np.sort(values[numbered == number]) for number in range(1, count + 1)]
    pool = np.sort(maps[~masks].ravel())
    rates, overlaps = [1.0], [1.0]
    for position in np.linspace(0, len(pool) - 1, thresholds, dtype=int):
        threshold = pool[position]
        rates.append(1.0 - (position + 1) / len(pool))
        overlaps.append(float(np.mean([1.0 - np.searchsorted(region, threshold, side="right") / len(region) for region in regions])))
    return _area(np.array(rates[::-1]), np.array(overlaps[::-1]), limit)


def published_in_numpy(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3, thresholds: int = 100) -> float:
    """The same with one lookup of all thresholds a region instead of a Python loop over thresholds."""
    pool = np.sort(maps[~masks])
    position = np.linspace(0, len(pool) - 1, thresholds, dtype=int)
    shares = []
    for values, mask in zip(maps, masks, strict=True):
        numbered, count = label(mask, structure=EIGHT)
        for number in range(1, count + 1):
            region = np.sort(values[numbered == number])
            shares.append(1.0 - np.searchsorted(region, pool[position], side="right") / len(region))
    rates = np.append(1.0, 1.0 - (position + 1) / len(pool))[::-1]
    return _area(rates, np.append(1.0, np.mean(shares, axis=0))[::-1], limit)


def _area(rates: np.ndarray, overlaps: np.ndarray, limit: float) -> float:
    kept = rates < limit
    rate, overlap = np.append(rates[kept], limit), np.append(overlaps[kept], np.interp(limit, rates, overlaps))
    return float(np.trapezoid(overlap, rate)) / limit


def muscv2(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3, steps: int = 200) -> float:
    """MuSc-V2's: 200 equal steps of score, and at each of them every image is binarised and its regions are labelled anew."""
    low, high = maps.min(), maps.max()
    rates, overlaps = [], []
    for step in range(steps):
        binary = maps > low + (high - low) / steps * step
        shares = []
        for found, mask in zip(binary, masks, strict=True):
            numbered, count = label(mask, structure=EIGHT)
            for number in range(1, count + 1):
                rows, columns = np.nonzero(numbered == number)
                shares.append(found[rows, columns].sum() / len(rows))
        overlaps.append(np.mean(shares))
        rates.append(np.logical_and(~masks, binary).sum() / (~masks).sum())
    rate, overlap = np.array(rates[::-1]), np.array(overlaps[::-1])
    kept = rate < limit
    rate, overlap = rate[kept], overlap[kept]
    return float(np.trapezoid(overlap, (rate - rate[0]) / (rate[-1] - rate[0])))
