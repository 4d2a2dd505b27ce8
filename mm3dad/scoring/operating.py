"""The point at which a fitted detector raises its alarm, chosen on held-out samples, with what it promises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mm3dad.errors import ModelError
from mm3dad.scoring.calibrate import place_for_rate, threshold_f1, threshold_for_rate
from mm3dad.scoring.promise import (
    Interval,
    area_threshold,
    mean_interval,
    order_statistic_interval,
    p_value,
    proportion_interval,
    require_normals,
    require_share,
)
from mm3dad.types import Prediction


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds for a fitted detector, and the normal scores that make p-values.

    Attributes:
        rule: "false alarms" or "f1".
        threshold: image score above which a part is called defective.
        modalities: those the samples were scored by; a prediction by others is left as it is.
        normal_scores: image scores of the held-out normal samples, ascending.
        false_alarms: rate on normal samples: promised by the first rule, counted under the second.
        interval: 95 % interval of that rate.
        recall: share of the defective samples found, where the rule had any.
        pixel_threshold: map value above which a pixel counts as defective, or None.
        pixel_area: mean share of a normal sample's pixels above it.
        pixel_interval: 95 % interval of that share.
    """

    rule: str
    threshold: float
    modalities: tuple[str, ...]
    normal_scores: tuple[float, ...]
    false_alarms: float
    interval: Interval
    recall: float | None = None
    pixel_threshold: float | None = None
    pixel_area: float | None = None
    pixel_interval: Interval | None = None

    def judge(self, prediction: Prediction) -> Prediction:
        """Return the prediction with this point's verdict; one that was made from other modalities is returned as it is."""
        if list_modalities(prediction) != self.modalities:
            return prediction
        return dataclasses.replace(
            prediction,
            threshold=self.threshold,
            is_anomaly=prediction.score > self.threshold,
            calibrated=True,
            pixel_threshold=self.pixel_threshold,
            p_value=p_value(prediction.score, self.normal_scores),
        )

    def with_area(self, maps: Sequence[Tensor], area: float) -> OperatingPoint:
        """Return this point with a pixel threshold that normal samples exceed on a mean share `area` of their pixels (`area_threshold`)."""
        threshold, shares = area_threshold(maps, area)
        return dataclasses.replace(
            self, pixel_threshold=threshold, pixel_area=sum(shares) / len(shares), pixel_interval=mean_interval(shares)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, state: Any) -> OperatingPoint:
        """Read what `to_dict` wrote.

        Raises:
            ModelError: fields are missing or foreign, or the numbers are none.
        """
        try:
            given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in state.items()}
            point = cls(**given)
            numbers = [point.threshold, point.false_alarms, *point.normal_scores, *point.interval]
            numbers += [] if point.pixel_threshold is None else [point.pixel_threshold]
            if not point.normal_scores or not all(math.isfinite(number) for number in numbers):
                raise ValueError("numbers are missing")
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(f"the operating point of the model is damaged ({error}); run `mm3dad calibrate` again") from error
        return point


def list_modalities(prediction: Prediction) -> tuple[str, ...]:
    """Return the modalities a prediction was made from, as its parts tell."""
    return tuple(name for name in ("rgb", "xyz") if f"{name}_map" in prediction.parts)


def choose_by_rate(scores: Tensor, rate: float, modalities: tuple[str, ...] = ()) -> OperatingPoint:
    """Choose the threshold that a normal sample exceeds with a chance of at most `rate` (`threshold_for_rate`).

    Args:
        scores: (n,) floating, image scores of held-out normal samples.
        rate: false alarms per normal sample.
        modalities: those the samples were scored by.

    Raises:
        ConfigError: rate is out of range.
        DataError: too few samples for the promise; the message gives the number it takes and the rate these can promise.
    """
    rate = require_share("false_alarms", rate)
    count = len(scores)
    require_normals(count, rate)
    threshold = threshold_for_rate(scores, rate)
    place = place_for_rate(count, rate)
    return OperatingPoint(
        rule="false alarms",
        threshold=threshold,
        modalities=modalities,
        normal_scores=tuple(scores.double().sort().values.tolist()),
        false_alarms=(count + 1 - place) / (count + 1),
        interval=order_statistic_interval(place, count),
    )


def choose_by_f1(scores: Tensor, labels: Tensor, modalities: tuple[str, ...] = ()) -> OperatingPoint:
    """Choose the threshold of the best F1 (`threshold_f1`); its rates were counted on the samples that chose it, so they flatter.

    Args:
        scores: (n,) floating, image scores of held-out samples.
        labels: (n,) 0 normal, 1 defective.
        modalities: those the samples were scored by.

    Raises:
        DataError: not both classes.
    """
    threshold = threshold_f1(scores, labels)
    defective = labels.bool()
    called = scores.double() > threshold
    alarms, normals = int((called & ~defective).sum()), int((~defective).sum())
    return OperatingPoint(
        rule="f1",
        threshold=threshold,
        modalities=modalities,
        normal_scores=tuple(scores[~defective].double().sort().values.tolist()),
        false_alarms=alarms / normals,
        interval=proportion_interval(alarms, normals),
        recall=float(called[defective].double().mean()),
    )
