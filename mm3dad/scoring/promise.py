"""What a finite number of held-out normal samples can promise about false alarms; all of it free of the scores' distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mm3dad.errors import ConfigError, DataError
from mm3dad.scoring._check import check_values

CONFIDENCE = 0.95
Interval = tuple[float, float]


def require_share(name: str, value: float) -> float:
    """Return a share that lies strictly between 0 and 1.

    Raises:
        ConfigError: it does not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ConfigError(f"{name} must lie between 0 and 1, both excluded, got {value!r}; 0.01 is 1 in 100")
    return float(value)


def normals_needed(rate: float, confidence: float | None = None) -> int:
    """Return how many held-out normal samples a false-alarm rate takes.

    Args:
        rate: false alarms per normal sample.
        confidence: None: the rate holds on average over sets of normal samples, n >= 1 / rate - 1 (split conformal
            prediction). A number: with this confidence the one set at hand keeps it, (1 - rate)^n <= 1 - confidence.
    """
    rate = require_share("rate", rate)
    if confidence is None:
        return max(1, math.ceil(1 / rate - 1 - 1e-9))
    return math.ceil(math.log(1 - require_share("confidence", confidence)) / math.log1p(-rate) - 1e-9)


def require_normals(count: int, rate: float) -> None:
    """Demand as many held-out normal samples as a false-alarm rate takes on average.

    Raises:
        DataError: too few; the message gives the number it takes and the rate these can promise.
    """
    if count < (needed := normals_needed(rate)):
        raise DataError(
            f"false alarms of {rate:g} take at least {needed} held-out normal samples, got {count}; "
            f"add normal samples, or ask for {math.ceil(1e4 / (count + 1)) / 1e4:g}, the lowest rate that {count} can promise"
        )


def order_statistic_interval(place: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return where the true false-alarm rate of a threshold lies that is the `place`-th smallest of `count` normal scores.

    For continuous scores that rate follows Beta(count + 1 - place, place) over sets of normal samples, whatever the scores'
    distribution (Wilks 1941; Vovk 2012, training-conditional validity). With tied scores it is lower.

    Args:
        place: 1 to count.
        count: normal samples.
        confidence: of the two-sided interval.
    """
    from scipy.stats import beta

    tail = (1 - require_share("confidence", confidence)) / 2
    low, high = beta.ppf([tail, 1 - tail], count + 1 - place, place)
    return float(low), float(high)


def proportion_interval(hits: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the exact interval of a proportion after `hits` of `count` (Clopper & Pearson 1934).

    Raises:
        DataError: nothing was counted.
    """
    from scipy.stats import beta

    if count < 1 or not 0 <= hits <= count:
        raise DataError(f"a proportion needs 0 <= hits <= count and count >= 1, got {hits} of {count}; add samples")
    tail = (1 - require_share("confidence", confidence)) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return low, high


def p_value(score: float, normal_scores: Sequence[float]) -> float:
    """Return the conformal p-value of a score: (1 + normal scores that reach it) / (n + 1).

    A normal sample's p-value is <= u with a chance of at most u, for every u (Vovk, Gammerman & Shafer 2005, 2.2).

    Args:
        score: of the sample under test.
        normal_scores: scores of held-out normal samples, at least one, ascending.
    """
    count = len(normal_scores)
    return (1 + count - int(np.searchsorted(normal_scores, score, "left"))) / (count + 1)


def area_threshold(maps: Sequence[Tensor], area: float) -> tuple[float, list[float]]:
    """Pixel threshold that normal samples exceed (value > threshold) on a mean share `area` of their pixels at most.

    Every sample counts alike, whatever its size. Only the part of a map that can matter is kept, so hundreds of maps fit in memory.

    Args:
        maps: (H, W) float32 each, score maps of held-out normal samples.
        area: share of the pixels.

    Returns:
        The threshold, and each sample's share above it, in the order of `maps`.

    Raises:
        ShapeError: a map is not a floating (H, W).
        DataError: NaN or infinite values, or no map.
        ConfigError: area is out of range.
    """
    area = require_share("area", area)
    if not len(maps):
        raise DataError("a pixel threshold needs maps of normal samples, got none; add samples")
    highest, weights = [], []
    for values in maps:
        check_values("map", values, "(H, W)")
        flat = values.detach().cpu().flatten()
        # One sample alone may use up the whole budget of area * n.
        kept = min(flat.numel(), math.floor(area * len(maps) * flat.numel()) + 1)
        highest.append(flat.topk(kept).values.double().numpy())
        weights.append(np.full(kept, 1 / flat.numel()))
    pooled, weight = np.concatenate(highest), np.concatenate(weights)
    order = np.argsort(-pooled, kind="stable")
    above = np.cumsum(weight[order])
    # The highest value that may no longer be exceeded: together with what lies above it, it would break the budget.
    first = int(np.searchsorted(above, area * len(maps) + 1e-12, "right"))
    threshold = float(pooled[order[min(first, len(order) - 1)]])
    return threshold, [float((values > threshold).sum() * one[0]) for values, one in zip(highest, weights, strict=True)]


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE, draws: int = 2000) -> Interval | None:
    """Return the bootstrap interval of a mean over samples; None for a single sample. Pixels of one sample are no samples of their own.

    Args:
        values: one number per sample.
        confidence: of the two-sided percentile interval.
        draws: with a fixed seed, so that results repeat.
    """
    if len(values) < 2:
        return None
    array = np.asarray(values, np.float64)
    chosen = np.random.default_rng(0).integers(0, len(array), (draws, len(array)))
    tail = (1 - require_share("confidence", confidence)) / 2
    low, high = np.quantile(array[chosen].mean(1), (tail, 1 - tail))
    return float(low), float(high)
