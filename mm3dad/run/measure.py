"""Score a test set, and turn the scored set into the metrics of docs/protocol.md."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mm3dad import files
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.metrics import bootstrap_auroc, image_metrics
from mm3dad.metrics.streamed import pixel_metrics_streamed
from mm3dad.run.maps import file_stem, make_maps
from mm3dad.run.outcomes import Outcome, check_prediction, predict_each
from mm3dad.run.progress import track
from mm3dad.run.rows import absolute_paths
from mm3dad.run.table import METRICS
from mm3dad.types import Sample

if TYPE_CHECKING:
    from mm3dad.methods import Detector

PIXEL_METRICS = METRICS[3:9]
EVAL_SIZE = 224


@dataclasses.dataclass
class Scored:
    """A scored test set: a row per sample, and its maps and ground truths at the evaluation size.

    Attributes:
        rows: what is known of each sample but its map.
        masked: whether a sample has a ground truth.
        kept: folder of the files that the rows name; thousands of maps need not lie in memory.
        maps: map and mask of each sample, where there is no such folder.
    """

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    masked: list[bool] = dataclasses.field(default_factory=list)
    kept: Path | None = None
    maps: list[tuple[np.ndarray, np.ndarray | None]] = dataclasses.field(default_factory=list)

    def read(self, position: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return map and mask of the sample at a position.

        Raises:
            DataError: a kept map is missing or damaged.
        """
        if self.kept is None:
            return self.maps[position]
        row = self.rows[position]
        try:
            tensors = files.read_tensors(self.kept / row["file"])
            return tensors["map"].numpy(), tensors["mask"].numpy() if "mask" in tensors else None
        except (ModelError, KeyError, TypeError) as error:
            raise DataError(
                f"the kept map of {row.get('id')!r} in {self.kept} cannot be read ({error}); run again with --overwrite"
            ) from error


def parse_eval_size(value: int | str) -> int | str:
    """Return the side of the square the maps are compared at, or "native" for each sample's own size.

    Raises:
        ConfigError: anything else.
    """
    if value == "native":
        return value
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if isinstance(value, (bool, float)) or size < 8:
        raise ConfigError(
            f"eval_size must be a whole number of pixels, at least 8, or native, got {value!r}; the protocol uses {EVAL_SIZE}"
        )
    return size


def _target_size(sample: Sample, eval_size: int | str) -> tuple[int, int]:
    """Points without a grid are compared point by point: there is nothing between them to resize."""
    if eval_size == "native" or not sample.meta.organised:
        return sample.size
    return int(eval_size), int(eval_size)


def score_samples(
    detector: Detector, samples: Sequence[Sample], eval_size: int | str = EVAL_SIZE, keep: Path | None = None, title: str = "predict"
) -> Scored:
    """Predict every sample, streaming; a transductive method sees the whole set at once.

    Args:
        detector: fitted.
        samples: labelled samples, read when they are needed.
        eval_size: side of the square that maps and masks are brought to, or "native".
        keep: folder of the run, in which maps/<id>.safetensors are written as they come.
        title: what the progress says.

    Raises:
        DataError: a sample cannot be read or scored, or has no label.
    """
    scored = Scored(kept=keep)
    for outcome in track(_outcomes(detector, samples), title, len(samples)):
        if outcome.error is not None:
            raise outcome.error
        sample, prediction = outcome.sample, outcome.prediction
        assert sample is not None and prediction is not None
        if sample.label is None:
            raise DataError(f"sample {sample.meta.id!r} has no label; evaluate needs good and defective samples in folders of their own")
        mask = sample.mask
        if mask is None and sample.label == 0:
            mask = torch.zeros(sample.size, dtype=torch.bool)
        tensors = make_maps(prediction, mask, _target_size(sample, eval_size))
        file = f"maps/{file_stem(sample.meta.id)}.safetensors" if keep is not None else None
        if keep is not None and file is not None:
            files.write_tensors(keep / file, tensors)
        else:
            scored.maps.append((tensors["map"].numpy(), tensors["mask"].numpy() if mask is not None else None))
        scored.masked.append(mask is not None)
        scored.rows.append(
            {
                "id": sample.meta.id,
                "label": sample.label,
                "defect": sample.meta.defect,
                "score": float(prediction.score),
                "threshold": prediction.threshold,
                "calibrated": prediction.calibrated,
                "predict_ms": round(outcome.milliseconds, 3),
                "paths": absolute_paths(sample),
                "file": file,
            }
        )
    if not scored.rows:
        raise DataError("evaluate needs test samples, got none; check the split")
    return scored


def _outcomes(detector: Detector, samples: Sequence[Sample]) -> Iterator[Outcome]:
    if "transductive" not in detector.needs.settings:
        yield from predict_each(detector, [partial(samples.__getitem__, i) for i in range(len(samples))])
        return
    start = time.perf_counter()
    predictions = detector.predict_all(samples)
    spent = 1000 * (time.perf_counter() - start) / max(1, len(predictions))
    for i, prediction in enumerate(predictions):
        sample = samples[i]
        yield Outcome(sample, check_prediction(detector, sample, prediction), None, spent)


def measure(scored: Scored) -> dict[str, Any]:
    """Compute the metrics of one scored test set; what cannot be defined is None, with the reason in `notes`."""
    scores = np.array([row["score"] for row in scored.rows], dtype=np.float64)
    labels = np.array([row["label"] for row in scored.rows])
    image = image_metrics(scores, labels)
    missing = [row["id"] for row, masked in zip(scored.rows, scored.masked, strict=True) if not masked]
    if missing:
        reason = f"{len(missing)} defective samples have no mask (first: {missing[0]})"
        pixel: dict[str, Any] = {**dict.fromkeys(PIXEL_METRICS), "notes": dict.fromkeys(PIXEL_METRICS, reason)}
    else:
        pixel = pixel_metrics_streamed(scored.read, len(scored.rows))
    times = [row["predict_ms"] for row in scored.rows]
    return {
        **{key: value for key, value in {**image, **pixel}.items() if key != "notes"},
        "image_auroc_ci": None if image["image_auroc"] is None else list(bootstrap_auroc(scores, labels)),
        "samples": len(scored.rows),
        "predict_ms_p50": float(np.percentile(times, 50)),
        "predict_ms_p95": float(np.percentile(times, 95)),
        "notes": {**image["notes"], **pixel["notes"]},
    }


def peak_memory() -> int:
    """Return the peak resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_scored(folder: Path, rows: list[dict[str, Any]]) -> Scored:
    """Read back what `score_samples(keep=folder)` kept, to score it again without predicting.

    Raises:
        DataError: a kept map is missing or damaged.
    """
    scored = Scored(rows, kept=folder)
    scored.masked = [scored.read(position)[1] is not None for position in range(len(rows))]
    return scored
