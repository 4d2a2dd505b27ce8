"""Whether a sample lies outside what a model was fitted on, judged by how far normal samples lie from each other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mm3dad.errors import ShapeError
from mm3dad.scoring.calibrate import threshold_for_rate
from mm3dad.scoring.promise import normals_needed, p_value


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


def _limit(held: Tensor, rate: float) -> float:
    limit = threshold_for_rate(held, rate)
    if len(held) >= normals_needed(rate):
        return limit
    # A few samples rarely show how far normal ones may lie: with 5 of them every third would be called outside.
    return 2 * limit - float(held.median())
