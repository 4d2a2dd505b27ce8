"""AUPRO: how much of each defect region is found, integrated over low false-positive rates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mm3dad.errors import ConfigError, DataError
from mm3dad.metrics._ranking import ArrayLike, Ranking, check_maps, rank


def rank_pixels(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], top: float = 1.0) -> Ranking:
    """Rank the pixels of checked maps; a defect pixel weighs 1 / (area of its region * number of regions).

    Regions are 8-connected components, image by image, so every region counts the same whatever its size. Cost is one
    sort of the normal pixels, or of their highest `top` share; memory is a few arrays of one number per pixel.
    """
    weights = np.concatenate([weigh_pixels(mask) for mask in masks])
    regions = weights.sum()
    positives = np.concatenate([value[mask] for value, mask in zip(maps, masks, strict=True)])
    negatives = np.concatenate([value[~mask] if mask.any() else value.ravel() for value, mask in zip(maps, masks, strict=True)])
    return rank(negatives, positives, weights / regions if regions else weights, top)


def weigh_pixels(mask: np.ndarray) -> np.ndarray:
    """1 / area of its region for each defect pixel of one mask, in row-major order."""
    from scipy.ndimage import label

    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros(0)
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    region = label(box, structure=np.ones((3, 3), dtype=int))[0][box]
    return 1.0 / np.bincount(region)[region]


def aupro(maps: ArrayLike, masks: ArrayLike, limit: float = 0.3, thresholds: int | None = None) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    A pixel is positive when its score lies strictly above the threshold. PRO is the mean over all regions (8-connected,
    per image) of the share of their pixels that are positive; the false-positive rate counts all other pixels.

    With `thresholds=None` the curve has a point at every distinct score, straight lines between them (pixels of equal
    score enter together) and an interpolated end at `limit`: the result is exact, and constant maps give the chance
    diagonal, limit / 2. With a number the curve is that of the evaluation code that the published tables use: so many
    thresholds at equal steps of rank among the normal pixels, the point (1, 1) put in front. It is coarse: for
    limit 0.01 and 100 thresholds it is one trapezoid and can hardly exceed 0.5 (docs/protocol.md).

    Args:
        maps: (N, H, W) finite scores, higher is worse; or a list of (H, W) of different sizes. Numpy or torch.
        masks: ground truth of the same sizes, boolean or 0 and 1; all False on good samples.
        limit: largest false-positive rate, in (0, 1].
        thresholds: None for the exact value; 100 for the published definition (Bergmann et al., MVTec 3D-AD, 2022).

    Raises:
        ShapeError: maps and masks differ in shape.
        DataError: NaN, masks that are not binary, no defect pixel at all, or nothing but defect pixels.
        ConfigError: limit or thresholds out of range.
    """
    check_limit(limit)
    if thresholds is not None and thresholds < 2:
        raise ConfigError(f"thresholds must be None (exact) or at least 2, got {thresholds}; the published definition takes 100")
    values, truth = check_maps(maps, masks)
    if thresholds is None:
        return aupro_of(rank_pixels(values, truth, limit), limit)
    return aupro_at_thresholds(rank_pixels(values, truth), limit, thresholds)


def pro_curve(maps: ArrayLike, masks: ArrayLike, limit: float = 0.3, points: int = 100) -> np.ndarray:
    """Return points of the exact per-region-overlap curve whose area `aupro` gives, for a picture of it.

    Args:
        maps, masks: as for `aupro`.
        limit: largest false-positive rate, in (0, 1].
        points: at equal steps of the false-positive rate from 0 to `limit`, at least 2.

    Returns:
        (points, 2) float64: false-positive rate, mean region overlap.

    Raises:
        ShapeError, DataError, ConfigError: as for `aupro`.
    """
    check_limit(limit)
    values, truth = check_maps(maps, masks)
    ranking = rank_pixels(values, truth, limit)
    check_regions(ranking)
    count = len(ranking.negatives)
    start, length = ranking.above / count, np.maximum(ranking.reached - ranking.above, 1e-9) / count
    rates = np.linspace(0, limit, points)
    return np.stack([rates, [ranking.weights @ np.clip((rate - start) / length, 0, 1) for rate in rates]], 1)


def check_limit(limit: float) -> None:
    """Raise ConfigError unless 0 < limit <= 1."""
    if not 0 < limit <= 1:
        raise ConfigError(f"limit must be a false-positive rate in (0, 1], got {limit}; the standard one is 0.3")


def check_regions(ranking: Ranking) -> None:
    """Raise DataError unless there are defect pixels and normal pixels."""
    if not len(ranking.positives):
        raise DataError("AUPRO needs at least one defect pixel, got masks that are all empty; add defective samples with masks")
    if not len(ranking.negatives):
        raise DataError("AUPRO needs at least one normal pixel, got masks that cover every pixel; check that the masks are not inverted")


def aupro_of(ranking: Ranking, limit: float) -> float:
    """Exact AUPRO of pixels that are ranked already."""
    check_regions(ranking)
    count = len(ranking.negatives)
    start, end = ranking.above / count, ranking.reached / count
    # Along the false-positive rate one defect pixel is a ramp: 0 until the normal pixels above it are counted, 1 once
    # those of its own value are, a straight line between. The area under a ramp is known, so no curve is built.
    within = np.clip(limit - start, 0.0, None)
    area = np.where(end <= limit, limit - (start + end) / 2, within * within / (2 * np.maximum(end - start, 1 / count)))
    return float(ranking.weights @ area) / limit


def aupro_at_thresholds(ranking: Ranking, limit: float, thresholds: int) -> float:
    """AUPRO of ranked pixels by the published definition: thresholds at equal steps of rank among normal pixels."""
    check_regions(ranking)
    count = len(ranking.negatives)
    position = np.linspace(0, count - 1, thresholds, dtype=int)[::-1]
    rate = np.append(1.0 - (position + 1) / count, 1.0)
    overlap = np.append(_overlap_above(ranking, ranking.negatives[position]), 1.0)
    kept = rate < limit
    rate, overlap = np.append(rate[kept], limit), np.append(overlap[kept], np.interp(limit, rate, overlap))
    return float(np.trapezoid(overlap, rate)) / limit


def _overlap_above(ranking: Ranking, thresholds: np.ndarray) -> np.ndarray:
    """PRO at each threshold: the weight of all defect pixels strictly above it."""
    above = np.append(np.cumsum(ranking.weights[::-1])[::-1], 0.0)
    return above[np.searchsorted(ranking.positives, thresholds, side="right")]


def aupro_musc(maps: ArrayLike, masks: ArrayLike, limit: float = 0.3, thresholds: int = 200) -> float:
    """AUPRO as MuSc-V2 reports it (its metrics file, after cflow-ad): another definition, for comparison with that paper only.

    Thresholds at equal steps of score from the lowest to the highest; the points with a false-positive rate below
    `limit` are kept and their rates stretched to [0, 1] before integrating. Not interchangeable with `aupro`.

    Args:
        maps: as `aupro`.
        masks: as `aupro`.
        limit: as `aupro`.
        thresholds: number of equal score steps.

    Raises:
        ShapeError, DataError, ConfigError: as `aupro`; also a DataError where the definition divides by zero because all
            kept points have one rate (constant maps).
    """
    check_limit(limit)
    if thresholds < 2:
        raise ConfigError(f"thresholds must be at least 2, got {thresholds}; the published definition takes 200")
    ranking = rank_pixels(*check_maps(maps, masks))
    check_regions(ranking)
    low = float(min(ranking.negatives[0], ranking.positives[0]))
    high = float(max(ranking.negatives[-1], ranking.positives[-1]))
    level = low + (high - low) / thresholds * np.arange(thresholds)[::-1]
    count = len(ranking.negatives)
    rate = (count - np.searchsorted(ranking.negatives, level, side="right")) / count
    kept = rate < limit
    rate, overlap = rate[kept], _overlap_above(ranking, level)[kept]
    if not len(rate) or rate[-1] == rate[0]:
        raise DataError("MuSc-V2's AUPRO needs scores whose false-positive rate varies below the limit, got one rate only; use aupro")
    return float(np.trapezoid(overlap, (rate - rate[0]) / (rate[-1] - rate[0])))
