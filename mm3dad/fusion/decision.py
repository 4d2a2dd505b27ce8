"""A decision layer: one weight per modality, learned from normal samples alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ShapeError


def fit_one_class(vectors: Tensor, share: float = 0.5, steps: int = 10000, tolerance: float = 1e-7) -> Tensor:
    """Find the direction of a linear one-class support vector machine: scores are then `vectors @ weights`.

    The machine separates normal vectors from the origin with the widest margin that leaves at most about `share` of them behind. Its
    direction is the point nearest to the origin of the vectors' reduced hull, where no vector weighs more than 1 / (share n). That
    point is found by conditional gradient steps with exact lengths: each step looks at the mean of the share n vectors that project
    lowest. The published decision layers (M3DM; scikit-learn's SGDOneClassSVM) approach the same optimum by stochastic steps from a
    seed; this one needs neither library nor random numbers, and its weights are >= 0 for scores >= 0.

    Args:
        vectors: (n, K) floating, >= 0, one score per modality of normal samples or pixels.
        share: nu of the machine, in (0, 1].
        steps: at most so many steps.
        tolerance: stop when the squared length of the point is within this share of its lower bound.
    Returns:
        (K,) float64 of unit length; equal weights where all vectors are zero.
    Raises:
        ShapeError: `vectors` is not a floating, non-empty (n, K).
        DataError: NaN, infinite or negative entries.
        ConfigError: `share` is out of range.
    """
    if vectors.ndim != 2 or not vectors.numel() or not vectors.is_floating_point():
        raise ShapeError(f"vectors must be floating, non-empty (n, K), got {tuple(vectors.shape)} {vectors.dtype}")
    if not bool((vectors.isfinite() & (vectors >= 0)).all()):
        raise DataError("vectors must be finite and >= 0, got NaN, infinite or negative entries; check the scores they are made of")
    if not 0 < share <= 1:
        raise ConfigError(f"share must lie in (0, 1], got {share}; 0.5 is published")
    rows = vectors.double()
    whole = share * len(rows)
    point = rows.mean(0)
    for _ in range(steps):
        lowest = _mean_of_lowest(rows, rows @ point, whole)
        gap = float(point @ (point - lowest))
        if gap <= tolerance * float(point @ point):
            break
        away = point - lowest
        point = point - min(1.0, gap / float(away @ away)) * away
    length = float(point.norm())
    if length == 0:
        return torch.full((rows.shape[1],), rows.shape[1] ** -0.5, dtype=torch.float64)
    return point / length


def _mean_of_lowest(rows: Tensor, projection: Tensor, whole: float) -> Tensor:
    """Return the mean of the `whole` rows of lowest projection, the last of them counted in part; of one row where it is below 1."""
    count = min(len(rows), max(1, math.ceil(whole)))
    chosen = projection.topk(count, largest=False).indices
    weights = rows.new_ones(count)
    if count > 1:
        weights[-1] = whole - (count - 1)
    return (weights[:, None] * rows[chosen]).sum(0) / weights.sum()
