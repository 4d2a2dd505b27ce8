"""Re-scoring by a constrained neighbourhood: of a set by its other samples, of one sample by its similar normals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.fusion._check import check_values


def rescore(scores: Tensor, features: Tensor, neighbors: Sequence[int] = (1, 7)) -> Tensor:
    """Average the scores of a test set over similar samples (RsCon of MuSc-V2, sheet 7.6); transductive.

    Scores are stretched to [0, 1] over the set. For each k, a sample takes the mean of the k samples whose features
    have the largest dot products with its own (itself included), weighted by these products; then the mean over k.
    Dot products are used as published: not clipped, so features should be mostly of positive similarity.

    Args:
        scores: (N,) floating image scores.
        features: (N, C) floating, the salient feature of each sample.
        neighbors: the k; more than N counts as N.

    Returns:
        (N,), dtype of `scores`; all 0 where the scores are constant. A sample whose weights cancel keeps its own score.

    Raises:
        ShapeError: not (N,) and (N, C), or N is 0.
        DataError: NaN or infinite values.
        ConfigError: no k, or a k below 1.
    """
    if not neighbors or min(neighbors) < 1:
        raise ConfigError(f"neighbors must be one or more numbers >= 1, got {tuple(neighbors)}; (1, 7) is published")
    check_values("scores", scores, "(N,)")
    check_values("features", features, "(N, C)")
    if len(scores) != len(features) or not len(scores):
        raise ShapeError(
            f"scores (N,) and features (N, C) must have the same N >= 1, got {tuple(scores.shape)} and {tuple(features.shape)}"
        )
    spread = scores.max() - scores.min()
    scaled = (scores - scores.min()) / (spread if float(spread) > 0 else 1)
    similarity = (features @ features.T).to(scores.dtype)
    averages = []
    for k in neighbors:
        weights, near = similarity.topk(min(k, len(scores)), dim=1)
        total = weights.sum(1)
        cancelled = total.abs() <= 1e-6 * weights.abs().sum(1)
        averages.append(torch.where(cancelled, scaled, (weights * scaled[near]).sum(1) / total.masked_fill(cancelled, 1)))
    return torch.stack(averages).mean(0)


def judge_against_neighbors(score: float, neighbor_scores: Tensor, global_spread: float, prior: float = 4.0) -> float:
    """Judge one sample's score against the held-out scores of its K most similar normal samples (duet; design, part 4.5).

    A part of a textured or reflective kind scores high without a defect, and so do the normal samples that resemble
    it. With z = (score - their mean) / spread the result is 1 + z for z >= 0 and exp(z) below: it stays positive,
    keeps the order of all scores (a cut at 0 would tie half of the good parts), and is 1 for a sample like its
    neighbours.

    K values tell a spread badly, and two equal ones tell none. So their variance is shrunk towards that of all normal
    samples, as if `prior` more values of that variance had been seen: spread^2 = (K * var + prior * global_spread^2) /
    (K + prior). Where no spread is left at all, the unit is the neighbours' mean, or 1.

    Args:
        score: the sample's image score.
        neighbor_scores: (K,) floating, K >= 1, each scored by a bank without it.
        global_spread: standard deviation of all held-out normal scores, >= 0.
        prior: weight of the global spread, in samples, > 0.

    Returns:
        A number > 0, increasing in `score`.

    Raises:
        ShapeError: neighbor_scores are not (K,), or K is 0.
        DataError: NaN or infinite values.
        ConfigError: global_spread is negative or prior is not above 0.
    """
    check_values("neighbor_scores", neighbor_scores, "(K,)")
    K = len(neighbor_scores)
    if not K:
        raise ShapeError("neighbor_scores must hold at least one score, got none; retrieve K >= 1 normal samples")
    if not math.isfinite(score):
        raise DataError(f"score must be finite, got {score}; check the sample it comes from")
    if not 0 <= global_spread < math.inf or not prior > 0:
        raise ConfigError(f"global_spread >= 0 and prior > 0 are needed, got {global_spread} and {prior}")
    values = neighbor_scores.double()
    mean, variance = float(values.mean()), float(values.var(correction=0))
    spread = math.sqrt((K * variance + prior * global_spread**2) / (K + prior))
    if spread <= 1e-6 * abs(mean):
        spread = abs(mean)
    z = (score - mean) / (spread or 1.0)
    return 1 + z if z >= 0 else math.exp(z)
