"""Whether a sample lies outside what a model was fitted on, judged by how far normal samples lie from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mm3dad.errors import DataError, ShapeError
from mm3dad.scoring.calibrate import threshold_for_rate
from mm3dad.scoring.promise import normals_needed, p_value, require_share

TINY = 1e-30  # stands for a median of 0, as among equal samples


def find_strangest(measured: Mapping[str, float], held: Mapping[str, Tensor], kinds: Sequence[str]) -> tuple[float, Tensor]:
    """Bring several distances of one modality to one number: the largest, each beside the median of the held-out normal samples.

    One number, and not a test for each kind, since a share of the rate for each would take as many times the normal samples.

    Args:
        measured: by kind, the distance of a sample from the most similar normal one, >= 0.
        held: by kind (n,) floating, those of held-out normal samples.
        kinds: which of them count; those that are not there do not.

    Returns:
        The number of the sample, and (n,) float64 those of the held-out samples.

    Raises:
        ShapeError: none of the kinds is there.
    """
    there = [kind for kind in kinds if kind in measured and kind in held]
    if not there:
        raise ShapeError(f"expected {' or '.join(kinds)} in measured and held, got {', '.join(measured)} and {', '.join(held)}")
    rows = torch.stack([held[kind].double() for kind in there])
    unit = rows.median(1).values.clamp_min(TINY)
    return max(measured[kind] / float(one) for kind, one in zip(there, unit, strict=True)), (rows / unit[:, None]).amax(0)


def judge_outside(gaps: Sequence[float], held: Sequence[Tensor], rate: float) -> tuple[float, bool]:
    """Judge the distances of a sample's descriptors from the most similar normal ones, one of each modality.

    Each modality is judged by the distances at which held-out normal samples lie (split conformal prediction), with an even share of the
    rate (Bonferroni), since they are far from independent. A held-out sample looks for its like among fewer samples than a new one
    does, so its distance is, if anything, larger, and the rate rather below the one stated.

    Args:
        gaps: distance of the sample in each modality, finite.
        held: for each modality (n,) floating, the distances of held-out normal samples.
        rate: share of normal samples that may be called outside. It takes n >= modalities / rate - 1 samples to promise it; with
            fewer, a sample must lie beyond the farthest of them by as much as that one lies beyond their median, and the share that is
            promised is modalities / (n + 1).

    Returns:
        A p-value, at most the share of normal samples that lie as far outside or farther, and whether the sample lies outside.

    Raises:
        ShapeError: no modality, or not one set of held-out distances for each.
        DataError: NaN or infinite distances.
        ConfigError: rate is out of range.
    """
    if not gaps or len(gaps) != len(held):
        raise ShapeError(f"gaps and held must have one entry for each modality, at least one, got {len(gaps)} and {len(held)}")
    chances = [p_value(gap, values.double().sort().values.tolist()) for gap, values in zip(gaps, held, strict=True)]
    limits = [_limit(values, rate / len(held)) for values in held]
    return min(1.0, len(gaps) * min(chances)), any(gap > limit for gap, limit in zip(gaps, limits, strict=True))


def judge_run(parts: Mapping[str, ArrayLike], normals: Mapping[str, ArrayLike], rate: float) -> tuple[float, bool]:
    """Judge whether a run of parts was recorded as the normal samples were: many parts show what one alone does not.

    Each quantity is compared by the two-sided rank test of Mann & Whitney (1947), with an even share of the rate (Bonferroni). It takes
    the parts as independent, and quantities that do not depend on what was fitted on, such as those of `features.condition`.

    Args:
        parts: by name (m,), of the parts.
        normals: by the same names (n,), of the normal samples.
        rate: share of runs of normal parts that may be said to have moved.

    Returns:
        A p-value, and whether the run moved.

    Raises:
        ShapeError: no quantity, or not the same ones.
        DataError: a quantity without a value, or with one that is not finite.
        ConfigError: rate is out of range.
    """
    from scipy.stats import mannwhitneyu

    rate = require_share("rate", rate)
    if not parts or parts.keys() != normals.keys():
        raise ShapeError(f"parts and normals must have the same quantities, got {', '.join(parts)} and {', '.join(normals)}")
    chances = []
    for name, values in parts.items():
        pair = [np.asarray(one, dtype=np.float64) for one in (values, normals[name])]
        if not all(len(one) and np.isfinite(one).all() for one in pair):
            raise DataError(f"{name} must have finite values of parts and of normal samples; score the parts again")
        chances.append(1.0 if np.ptp(np.concatenate(pair)) == 0 else float(mannwhitneyu(*pair).pvalue))
    chance = min(1.0, len(chances) * min(chances))
    return chance, chance <= rate


def _limit(held: Tensor, rate: float) -> float:
    limit = threshold_for_rate(held, rate)
    if len(held) >= normals_needed(rate):
        return limit
    # A few samples rarely show how far normal ones may lie: with 5 of them every third would be called outside.
    return 2 * limit - float(held.median())
