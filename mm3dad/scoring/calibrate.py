"""Put scores on a scale that comes from normal samples alone, and choose thresholds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ModelError, ShapeError
from mm3dad.scoring._check import check_values


@dataclass(frozen=True)
class Calibration:
    """The scale of one modality's patch scores: 0 is an ordinary normal patch, 1 one that only few normal patches exceed.

    Modalities meet in the upper tail, where alarms are raised; so the unit is the distance from the median to a high
    quantile of held-out normal scores, and equal calibrated scores mean about equally rare ones. Quantiles, and not
    mean and deviation, because a few mislabelled or badly measured patches must not set the scale.

    Attributes:
        location: score that becomes 0.
        scale: score difference that becomes 1; above 0.
    """

    location: float
    scale: float

    @classmethod
    def fit(cls, values: Tensor, quantile: float = 0.99) -> Calibration:
        """Take the scale from held-out scores of normal samples.

        Args:
            values: (n,) floating, scores of patches that their bank has not seen.
            quantile: the quantile that becomes 1, between 0.5 and 1.

        Raises:
            ShapeError: values are not a floating (n,).
            DataError: NaN or infinite values.
            ConfigError: quantile is out of range.
        """
        check_values("values", values, "(n,)")
        if not 0.5 < quantile <= 1:
            raise ConfigError(f"quantile must lie in (0.5, 1], got {quantile}; 0.99 is the default")
        middle, high = np.quantile(values.detach().cpu().double().numpy(), (0.5, quantile))
        # Scores without spread (one bit-equal normal sample) still need a unit: their own size, or 1 if they are all 0.
        scale = high - middle if high - middle > 1e-6 * abs(middle) else abs(middle) or 1.0
        return cls(float(middle), float(scale))

    def apply(self, scores: Tensor) -> Tensor:
        """Return max(0, (scores - location) / scale): what lies below the ordinary is no evidence of a defect.

        Args:
            scores: floating, any shape.
        """
        return ((scores - self.location) / self.scale).clamp_min(0)

    def to_dict(self) -> dict[str, float]:
        """Return plain numbers for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Calibration:
        """Read what `to_dict` wrote.

        Raises:
            ModelError: other keys, or numbers that are no scale.
        """
        try:
            location, scale = float(state["location"]), float(state["scale"])
        except (KeyError, TypeError, ValueError):
            raise ModelError(
                f"a calibration must hold the numbers location and scale, got {state!r}; the model is damaged, fit it again"
            ) from None
        if set(state) != {"location", "scale"} or not math.isfinite(location) or not 0 < scale < math.inf:
            raise ModelError(
                f"a calibration must hold a finite location and a scale above 0, got {state!r}; the model is damaged, fit it again"
            )
        return cls(location, scale)


def threshold_for_rate(scores: Tensor, rate: float) -> float:
    """Threshold that normal samples exceed (score > threshold) with a chance of at most `rate`.

    The ceil((n + 1) * (1 - rate))-th smallest of n normal scores holds the promise on average over sets of normal
    samples, whatever their distribution (split conformal prediction). Below 1 / rate - 1 samples no order statistic
    can promise it; then the largest score is returned, the most that the data support.

    Args:
        scores: (n,) floating, scores of normal samples that the model has not seen.
        rate: false alarms per normal sample, between 0 and 1.

    Raises:
        ShapeError: scores are not a floating (n,).
        DataError: NaN or infinite scores.
        ConfigError: rate is out of range.
    """
    check_values("scores", scores, "(n,)")
    if not 0 < rate < 1:
        raise ConfigError(f"rate must be a false-alarm rate between 0 and 1, got {rate}; 0.01 is one alarm in 100 good parts")
    return float(scores.sort().values[place_for_rate(len(scores), rate) - 1])


def place_for_rate(count: int, rate: float) -> int:
    """Return which of `count` scores, smallest first and from 1, `threshold_for_rate` takes."""
    # The small number undoes binary rounding: (99 + 1) * (1 - 0.01) must count as 99, not as a little more.
    return min(max(math.ceil((count + 1) * (1 - rate) - 1e-9), 1), count)


def threshold_f1(scores: Tensor, labels: Tensor) -> float:
    """Threshold with the best F1 (defective = score > threshold), half-way to the next lower score.

    Needs labelled defects, so it belongs to a validation set that has them, never to the test set.

    Args:
        scores: (n,) floating.
        labels: (n,) 0 normal, 1 defective.

    Raises:
        ShapeError: not two vectors of the same length.
        DataError: NaN or infinite scores, or not both classes.
    """
    check_values("scores", scores, "(n,)")
    if labels.shape != scores.shape:
        raise ShapeError(f"labels must be {tuple(scores.shape)} like scores, got {tuple(labels.shape)}")
    defective = labels.bool()
    if bool(defective.all()) or not bool(defective.any()):
        raise DataError(
            f"an F1 threshold needs normal and defective samples, got {int(defective.sum())} defective of {len(scores)}; "
            "give labelled samples of both kinds, or choose by a false-alarm rate"
        )
    levels, place = scores.unique(return_inverse=True)
    counts = torch.stack([torch.bincount(place[wanted], minlength=len(levels)) for wanted in (defective, ~defective)])
    found, alarms = counts.flip(1).cumsum(1).flip(1).double()
    # Of equally good thresholds the highest: fewer false alarms.
    best = len(levels) - 1 - int((2 * found / (found + alarms + defective.sum())).flip(0).argmax())
    if best == 0:  # calling everything defective is best: just below the lowest score
        return float(levels[0]) - (1e-6 * abs(float(levels[0])) or 1e-6)
    low, high = levels[best - 1], levels[best]
    middle = low + (high - low) / 2  # in the dtype of the scores, where neighbouring numbers have nothing between them
    return float(middle if middle < high else low)


def fold_indices(n_samples: int, folds: int = 5) -> list[Tensor]:
    """Split samples, sorted by id, into folds that are held out in turn: sample i belongs to fold i modulo `folds`.

    Neighbouring ids often come from one production run; dealing them out keeps every fold representative.

    Args:
        n_samples: at least 2.
        folds: at least 2; with fewer samples there are as many folds as samples.

    Returns:
        Ascending int64 indices of each fold; together all samples, once each.

    Raises:
        DataError: fewer than 2 samples.
        ConfigError: fewer than 2 folds.
    """
    if n_samples < 2:
        raise DataError(f"holding out needs at least 2 normal samples, got {n_samples}; add samples or scale by augmentations")
    if folds < 2:
        raise ConfigError(f"folds must be at least 2, got {folds}; 5 is the default")
    count = min(folds, n_samples)
    return [torch.arange(first, n_samples, count) for first in range(count)]


def held_out_numbers(count: int, most: int = 200) -> list[int]:
    """Return which of `count` samples are held out in turn: all, or `most` of them evenly spread; none where nothing would be left."""
    if count < 2:
        return []
    return sorted({round(i * (count - 1) / (min(count, most) - 1)) for i in range(min(count, most))})
