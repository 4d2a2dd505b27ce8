"""Mutual scoring: every sample of an unlabelled set is judged by the others (MuSc, MuSc-V2, sheet 7.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError
from mm3dad.ops.pair_minima import pair_minima
from mm3dad.scoring._check import check_values

# Entries of one patch x patches product: 2 MB in float32, which stays in cache while its minima are read off.
BLOCK = 2**19
# Squared distances below this share of a patch's squared norm have lost digits in the product, and are taken again directly.
NEAR = 1e-2


def mutual_scores(features: Tensor, fraction: float = 0.3) -> Tensor:
    """Score each patch by its mean distance to the samples that have the most similar patches.

    A normal patch finds its like in most other samples, a defect in few: for each other sample the distance to its
    nearest patch is taken, and the smallest max(1, int(fraction * (N - 1))) of them are averaged.

    Args:
        features: (N, P, C) floating, N >= 2 unlabelled samples.
        fraction: share of the other samples that is averaged.

    Returns:
        (N, P), dtype of `features`.

    Raises:
        ShapeError: features are not (N, P, C).
        DataError: NaN, or fewer than 2 samples.
        ConfigError: fraction is out of range.
    """
    distances = mutual_distances(features)
    return torch.stack([interval_mean(distances[i], fraction) for i in range(len(features))])


def mutual_distances(features: Tensor) -> Tensor:
    """Distance of each patch of each sample to the nearest patch of every other sample.

    Each pair of samples is multiplied once and read in both directions. |a|^2 + |b|^2 - 2ab, taken around the mean of the set, loses
    the digits of small distances; those are taken again from the difference.

    Args:
        features: (N, P, C) floating, N >= 2.

    Returns:
        (N, P, N - 1): the last axis runs over the other samples in order. N * P * (N - 1) numbers are held.

    Raises:
        ShapeError: features are not (N, P, C).
        DataError: NaN, or fewer than 2 samples.
    """
    check_values("features", features, "(N, P, C)")
    N, P, C = features.shape
    if N < 2:
        raise DataError(
            "mutual scoring is transductive: it needs at least 2 samples to judge one by the others, got 1; predict a whole set"
        )
    centred = features - features.reshape(-1, C).mean(0)
    squares = torch.linalg.vector_norm(centred, dim=2).square_()
    distances = features.new_empty((N, P, N - 1))
    step = max(1, BLOCK // (P * P))
    for i in range(N - 1):
        own, own_squares = centred[i : i + 1], squares[i : i + 1]
        for first in range(i + 1, N, step):
            chosen = slice(first, min(first + step, N))
            others, other_squares = centred[chosen], squares[chosen]
            product = (own[0] * -2) @ others.flatten(0, 1).T
            forward, backward = pair_minima(product, own_squares[0], other_squares)
            by_pair = product.view(P, -1, P)
            _remeasure(forward, by_pair.transpose(0, 1), own, others, own_squares, other_squares)
            _remeasure(backward, by_pair.permute(1, 2, 0), others, own, other_squares, own_squares)
            distances[i, :, first - 1 : chosen.stop - 1] = forward.clamp_min_(0).sqrt_().T
            distances[chosen, :, i] = backward.clamp_min_(0).sqrt_()
    return distances


def _remeasure(least: Tensor, product: Tensor, own: Tensor, others: Tensor, own_squares: Tensor, squares: Tensor) -> None:
    """Take the small ones of the squared distances `least` (k, P) again, from differences, for k pairs of samples.

    Args:
        product: (k, P, P), -2ab of own patches by others.
        own, others: (k or 1, P, C) features.
        own_squares, squares: (k or 1, P) their squared norms.
    """
    pair, patch = (least < NEAR * own_squares).nonzero(as_tuple=True)
    if len(pair):
        mine, theirs = pair if len(own) > 1 else 0 * pair, pair if len(others) > 1 else 0 * pair
        where = (product[pair, patch] + squares[theirs]).argmin(1)
        least[pair, patch] = (own[mine, patch] - others[theirs, where]).square().sum(1)


def interval_mean(distances: Tensor, fraction: float = 0.3) -> Tensor:
    """Mean of the smallest max(1, int(fraction * K)) entries of each row (the interval average of 7.4).

    Args:
        distances: (P, K), K >= 1 other samples.
        fraction: in [0, 1]; 0 gives the minimum, 1 the mean.

    Returns:
        (P,).

    Raises:
        ShapeError: not (P, K).
        DataError: NaN.
        ConfigError: fraction is out of range.
    """
    check_values("distances", distances, "(P, K)")
    if not 0 <= fraction <= 1:
        raise ConfigError(f"fraction must lie in [0, 1], got {fraction}; 0.3 is the published share")
    count = max(1, int(fraction * distances.shape[1]))
    return distances.topk(count, dim=1, largest=False).values.mean(1)
