"""Metrics of one score per item: AUROC, average precision, F1-max and a bootstrap interval."""

from __future__ import annotations

import numpy as np

from mm3dad.errors import ConfigError, DataError
from mm3dad.metrics._ranking import ArrayLike, Ranking, check_pairs, precision_and_recall, rank


def _rank_pairs(scores: ArrayLike, labels: ArrayLike) -> Ranking:
    values, truth = check_pairs(scores, labels)
    return rank(values[~truth], values[truth])


def auroc_of(ranking: Ranking) -> float:
    """AUROC of scores that are ranked already."""
    if not len(ranking.positives) or not len(ranking.negatives):
        raise DataError(
            f"AUROC needs both classes, got {len(ranking.positives)} defective and {len(ranking.negatives)} normal; add the missing class"
        )
    return 1.0 - float((ranking.above + ranking.reached).mean()) / (2 * len(ranking.negatives))


def average_precision_of(ranking: Ranking) -> float:
    """Average precision of scores that are ranked already."""
    _check_defective(ranking, "average precision")
    return float(precision_and_recall(ranking)[0].mean())


def f1_max_of(ranking: Ranking) -> float:
    """F1-max of scores that are ranked already."""
    _check_defective(ranking, "F1-max")
    precision, recall = precision_and_recall(ranking)
    return float((2 * precision * recall / (precision + recall)).max())


def _check_defective(ranking: Ranking, metric: str) -> None:
    if not len(ranking.positives):
        raise DataError(f"{metric} needs at least one defective item, got {len(ranking.negatives)} normal ones only; add defective ones")


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a defective item scores above a normal one, ties counting one half.

    Constant scores give 0.5.

    Args:
        scores: (N,) finite numbers, higher is worse; numpy or torch.
        labels: (N,) 0 normal, 1 defective.

    Raises:
        ShapeError: not two vectors of the same length.
        DataError: NaN or infinite scores, other labels, or one class only.

    >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75
    """
    return auroc_of(_rank_pairs(scores, labels))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Average precision: the sum over distinct thresholds of the recall gained times the precision there (no interpolation).

    Constant scores give the share of defective items.

    Args:
        scores: (N,) finite numbers, higher is worse.
        labels: (N,) 0 normal, 1 defective; at least one defective.

    Raises:
        ShapeError: not two vectors of the same length.
        DataError: NaN or infinite scores, other labels, or no defective item.
    """
    return average_precision_of(_rank_pairs(scores, labels))


def f1_max(scores: ArrayLike, labels: ArrayLike) -> float:
    """The best F1 over all thresholds. It looks at the test labels, so it is a bound and no operating point.

    Args:
        scores: (N,) finite numbers, higher is worse.
        labels: (N,) 0 normal, 1 defective; at least one defective.

    Raises:
        ShapeError: not two vectors of the same length.
        DataError: NaN or infinite scores, other labels, or no defective item.
    """
    return f1_max_of(_rank_pairs(scores, labels))


def bootstrap_auroc(scores: ArrayLike, labels: ArrayLike, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the AUROC from resampled items.

    Normal and defective items are drawn separately, so that every draw has both classes. The interval says how much
    the figure depends on which parts were tested; perfect separation gives (1, 1), which is no proof of certainty.

    Args:
        scores: (N,) finite numbers, higher is worse.
        labels: (N,) 0 normal, 1 defective; both occur.
        seed: fixes the draws.
        draws: number of resampled sets.

    Returns:
        (low, high): the 2.5 % and the 97.5 % quantile.

    Raises:
        ShapeError, DataError: as `auroc`.
        ConfigError: fewer than 1 draw.
    """
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, got {draws}; 2000 is usual")
    values, truth = check_pairs(scores, labels)
    auroc_of(rank(values[~truth], values[truth]))
    level, place = np.unique(values, return_inverse=True)
    random = np.random.default_rng(seed)
    found = np.empty(draws)
    # One block holds `block` draws side by side: counts per distinct score stay near 8 MB however many items there are.
    block = max(1, 1_000_000 // len(values))
    for first in range(0, draws, block):
        size = min(block, draws - first)
        normal, defective = (_draw_counts(random, place[truth == wanted], size, len(level)) for wanted in (False, True))
        below = np.cumsum(normal, axis=1) - normal / 2
        found[first : first + size] = (defective * below).sum(1)
    found /= float(truth.sum()) * float((~truth).sum())
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def _draw_counts(random: np.random.Generator, place: np.ndarray, draws: int, levels: int) -> np.ndarray:
    """Resample `place` with replacement; return how often each level occurs, (draws, levels) float64."""
    picked = place[random.integers(len(place), size=(draws, len(place)))]
    flat = picked + np.arange(draws)[:, None] * levels
    return np.bincount(flat.ravel(), minlength=draws * levels).reshape(draws, levels).astype(np.float64)
