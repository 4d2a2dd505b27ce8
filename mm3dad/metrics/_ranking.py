"""The one sort that every metric here shares: the negatives in order, and where each positive stands among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mm3dad.errors import DataError, ShapeError

ArrayLike = Any  # numpy array, torch tensor or nested sequence of numbers


@dataclass(frozen=True)
class Ranking:
    """Scores split by label.

    A positive (defective) score only has to be looked up among the sorted negatives: every threshold at which a
    metric can change its ordinate is the score of a positive, and those are few. Counts are exact, ties included.

    Attributes:
        negatives: (n,) scores with label 0, ascending; an array, or what gives its length and the scores at an array of ranks.
        positives: (p,) scores with label 1, ascending.
        weights:   (p,) float64, share of each positive in the overlap axis (AUPRO); sums to 1.
        above:     (p,) number of negatives strictly above each positive.
        reached:   (p,) number of negatives at or above each positive.
    """

    negatives: Any
    positives: np.ndarray
    weights: np.ndarray
    above: np.ndarray
    reached: np.ndarray


def to_numpy(values: ArrayLike) -> np.ndarray:
    """Return a numpy view of a tensor on any device, an array or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    return np.asarray(values)


def check_scores(values: ArrayLike, name: str) -> np.ndarray:
    """Return finite floating scores; float32 stays float32 because sorting it is twice as fast.

    Raises:
        ShapeError: the values are not real numbers.
        DataError: NaN or infinite values.
    """
    array = to_numpy(values)
    if array.dtype.kind not in "fiub":
        raise ShapeError(f"{name} must be real numbers, got dtype {array.dtype}; convert them to float32")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    elif array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise DataError(f"{name} must be finite, got {bad} NaN or infinite values of {array.size}; find the sample that made them")
    return array


def check_binary(values: ArrayLike, name: str) -> np.ndarray:
    """Return a boolean array from booleans or numbers that are only 0 and 1.

    Raises:
        DataError: another value occurs (a grey mask that was not thresholded).
    """
    array = to_numpy(values)
    if array.dtype != bool:
        if array.dtype.kind not in "fiu" or not ((array == 0) | (array == 1)).all():
            raise DataError(f"{name} must hold only 0 and 1 or booleans, got dtype {array.dtype} with other values; threshold them first")
        array = array.astype(bool)
    return array


def check_pairs(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (N,) and labels (N,) bool of one image-level evaluation.

    Raises:
        ShapeError: they are not vectors of the same, non-zero length.
        DataError: NaN or infinite scores, labels other than 0 and 1.
    """
    values, truth = check_scores(scores, "scores"), check_binary(labels, "labels")
    if values.ndim != 1 or values.shape != truth.shape or not values.size:
        raise ShapeError(f"scores and labels must be two (N,) vectors, N >= 1, got {values.shape} and {truth.shape}; flatten them first")
    return values, truth


def check_maps(maps: ArrayLike, masks: ArrayLike) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """Return maps and masks as two equally long sequences of (H, W) arrays; sizes may differ between samples.

    Raises:
        ShapeError: a map is not (H, W), a mask has another size than its map, or there is nothing.
        DataError: NaN or infinite scores, masks that are not binary.
    """
    stacked = [value if isinstance(value, list | tuple) else to_numpy(value) for value in (maps, masks)]
    deep = all(isinstance(value, list | tuple) or value.ndim == 3 for value in stacked)
    if not deep or len(stacked[0]) != len(stacked[1]) or not len(stacked[0]):
        raise ShapeError(
            "maps and masks must both be (N, H, W) with the same N >= 1, or lists of (H, W), got "
            + " and ".join(str(v.shape) if isinstance(v, np.ndarray) else f"a list of {len(v)}" for v in stacked)
        )
    pairs = [check_pair(i, value, mask) for i, (value, mask) in enumerate(zip(*stacked, strict=True))]
    return [value for value, _ in pairs], [mask for _, mask in pairs]


def check_pair(number: int, value: ArrayLike, mask: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return one map and its mask as (H, W) arrays.

    Raises:
        ShapeError, DataError: as `check_maps`; the message gives the number.
    """
    scores, truth = check_scores(value, f"map {number}"), check_binary(mask, f"mask {number}")
    if scores.ndim != 2 or scores.shape != truth.shape:
        raise ShapeError(
            f"map {number} must be (H, W) and its mask of the same size, got {scores.shape} and {truth.shape}; resize the mask by nearest"
        )
    return scores, truth


def rank(negatives: np.ndarray, positives: np.ndarray, weights: np.ndarray | None = None, top: float = 1.0) -> Ranking:
    """Sort both classes and count, for each positive, the negatives above it and at its value.

    Args:
        negatives: (n,) scores; sorted in place.
        positives: (p,) scores.
        weights: (p,) share of each positive; None: equal.
        top: share of the negatives, from the highest, that has to be in order. Below, their order and the counts of the positives
            among them are arbitrary, but such counts are larger than `top` times n.
    """
    _sort_top(negatives, top)
    if weights is None:
        positives = np.sort(positives)
        weights = np.full(len(positives), 1.0 / max(1, len(positives)))
    else:
        order = np.argsort(positives)
        positives, weights = positives[order], weights[order]
    above = len(negatives) - np.searchsorted(negatives, positives, side="right")
    reached = len(negatives) - np.searchsorted(negatives, positives, side="left")
    return Ranking(negatives, positives, weights, above, reached)


def _sort_top(values: np.ndarray, share: float) -> None:
    first = len(values) - int(share * len(values)) - 1
    if first > 0:
        values.partition(first)
        # Values equal to the lowest of the top must not be left below it: their counts would be wrong.
        if not (values[:first] == values[first]).any():
            values[first:].sort()
            return
    values.sort()


def precision_and_recall(ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall (p,) when everything at or above each positive's score is called defective.

    Ties share one point: the recall at a score counts all positives of that score.
    """
    found = len(ranking.positives) - np.searchsorted(ranking.positives, ranking.positives, side="left")
    return found / (found + ranking.reached), found / len(ranking.positives)
