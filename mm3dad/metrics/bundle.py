"""All metrics of one evaluation at once; a metric that the data cannot define is None, with the reason beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mm3dad.errors import DataError
from mm3dad.metrics._ranking import ArrayLike, Ranking, check_maps, check_pairs, rank
from mm3dad.metrics.aupro import aupro_at_thresholds, aupro_of, rank_pixels
from mm3dad.metrics.ranking import auroc_of, average_precision_of, f1_max_of


def image_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Return image_auroc, image_ap, image_f1, and `notes`: metric -> why it is None.

    Args:
        scores: (N,) one score per sample, higher is worse.
        labels: (N,) 0 normal, 1 defective.

    Raises:
        ShapeError, DataError: the input itself is wrong (shapes, NaN, labels); a missing class is a note, no error.
    """
    values, truth = check_pairs(scores, labels)
    return _compute(
        rank(values[~truth], values[truth]),
        {"image_auroc": auroc_of, "image_ap": average_precision_of, "image_f1": f1_max_of},
    )


def pixel_metrics(maps: ArrayLike, masks: ArrayLike) -> dict[str, Any]:
    """Return pixel_auroc, pixel_ap, pixel_f1, aupro_30, aupro_01, aupro_30_ref100, and `notes`: metric -> why it is None.

    All pixels of all samples are pooled and sorted once for the six.

    Args:
        maps: (N, H, W) finite scores, or a list of (H, W).
        masks: ground truth of the same sizes.

    Raises:
        ShapeError, DataError: the input itself is wrong; missing defects are a note, no error.
    """
    return measure_pixels(rank_pixels(*check_maps(maps, masks)))


def measure_pixels(ranking: Ranking) -> dict[str, Any]:
    """Return the metrics of `pixel_metrics` of pixels that are ranked already."""
    return _compute(
        ranking,
        {
            "pixel_auroc": auroc_of,
            "pixel_ap": average_precision_of,
            "pixel_f1": f1_max_of,
            "aupro_30": lambda r: aupro_of(r, 0.3),
            "aupro_01": lambda r: aupro_of(r, 0.01),
            "aupro_30_ref100": lambda r: aupro_at_thresholds(r, 0.3, 100),
        },
    )


def _compute(ranking: Ranking, metrics: dict[str, Callable[[Ranking], float]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for name, metric in metrics.items():
        try:
            result[name] = metric(ranking)
        except DataError as error:
            result[name], notes[name] = None, str(error)
    return {**result, "notes": notes}
