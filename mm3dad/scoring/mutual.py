"""Mutual scoring: every sample of an unlabelled set is judged by the others (MuSc, MuSc-V2, sheet 7.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError
from mm3dad.ops.pair_minima import RoughPairs, pair_minima
from mm3dad.scoring._check import check_values

# Entries of one patch x patches product: 8 MB in float32, which the caches still hold while its minima are read off.
BLOCK = 2**21
# Below this width a rough product saves less than the look at its candidates costs.
ROUGH_WIDTH = 32
# Pairs whose rough products are read off in one call: the results of these stand beside the distances of all.
PAIRS = 1024


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

    Each pair of samples is multiplied once and read in both directions. The product, taken around the mean of the set, only finds the
    nearest patch; its distance is taken from the difference of the two. On processors with matrix units the product is one in bfloat16,
    and every patch is measured that may be the nearest within its error; a pair with too many of these is multiplied again in full.

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
    distances = features.new_empty((N, N - 1, P))
    pairs = torch.combinations(torch.arange(N))
    if C >= ROUGH_WIDTH and RoughPairs.suit(features):
        rough, left = RoughPairs(centred, squares), []
        for some in pairs.split(PAIRS):
            forward, backward, done = rough.measure(some)
            first, second = some.T
            distances[first, second - 1], distances[second, first] = forward.sqrt_(), backward.sqrt_()
            left.append(some[~done])
        pairs = torch.cat(left)
    for i in pairs[:, 0].unique().tolist():
        own = centred[i] * -2
        for chosen in pairs[pairs[:, 0] == i, 1].split(max(1, BLOCK // (P * P))):
            theirs = centred[chosen]
            forward, backward = pair_minima(own @ theirs.flatten(0, 1).T, centred[i], theirs, squares[i], squares[chosen])
            distances[i, chosen - 1], distances[chosen, i] = forward.sqrt_(), backward.sqrt_()
    return distances.transpose(1, 2).contiguous()


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
