"""Choose the point at which a saved model raises its alarm, on samples that it was not fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mm3dad import __version__, files
from mm3dad.errors import ConfigError, DataError
from mm3dad.methods import load_detector
from mm3dad.run._arguments import require_writable
from mm3dad.run._splits import choose_categories, open_splits
from mm3dad.run.outcomes import predict_each
from mm3dad.run.progress import track
from mm3dad.run.selection import Selection, fingerprint
from mm3dad.scoring import OperatingPoint, choose_by_f1, choose_by_rate
from mm3dad.scoring.operating import list_modalities
from mm3dad.scoring.promise import CONFIDENCE, normals_needed, require_normals, require_share

if TYPE_CHECKING:
    from mm3dad.data import Dataset, Record
    from mm3dad.methods import Detector
    from mm3dad.types import Prediction, Sample


def choose_point(
    detector: Detector, samples: Sequence[Sample], *, false_alarms: float | None = None, pixel_area: float | None = None
) -> OperatingPoint:
    """Score held-out samples and choose an operating point; the detector is left as it is.

    Args:
        detector: fitted, not on these samples.
        samples: normal ones for a rate, normal and labelled defective ones for the best F1.
        false_alarms: rate on normal parts; None for the best F1.
        pixel_area: mean share of a normal part's pixels above the pixel threshold; None for no pixel threshold.

    Raises:
        ConfigError: a share out of range, or a method that scores each sample by the others of its set.
        DataError: too few samples for the promise, a sample that cannot be scored, or labels that are missing.
    """
    if "transductive" in detector.needs.settings:
        raise ConfigError(
            f"{detector.name} scores each sample by the others of its set, so no threshold carries over to the next one; use another method"
        )
    if false_alarms is not None:
        require_normals(len(samples), require_share("false_alarms", false_alarms))
    if pixel_area is not None:
        require_share("pixel_area", pixel_area)
    scores, labels, maps, seen = [], [], [], set()
    for sample, prediction in track(_score(detector, samples), "calibrate", len(samples)):
        if sample.label is None and false_alarms is None:
            raise DataError(f"sample {sample.meta.id!r} has no label; the best F1 needs good and defective samples in folders of their own")
        scores.append(prediction.score)
        labels.append(sample.label or 0)
        seen.add(list_modalities(prediction))
        if pixel_area is not None and sample.label != 1:
            maps.append(prediction.map.detach().cpu())
    if len(seen) > 1:
        named = " and ".join(sorted("+".join(names) or "none" for names in seen))
        raise DataError(f"the samples must have the same modalities, got some with {named}; calibrate on complete samples")
    modalities = seen.pop() if seen else ()
    values = torch.tensor(scores, dtype=torch.float64)
    if false_alarms is None:
        point = choose_by_f1(values, torch.tensor(labels), modalities)
    else:
        point = choose_by_rate(values, false_alarms, modalities)
    return point if pixel_area is None else point.with_area(maps, pixel_area)


def _score(detector: Detector, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Prediction]]:
    for outcome in predict_each(detector, [partial(samples.__getitem__, i) for i in range(len(samples))]):
        if outcome.error is not None:
            raise outcome.error
        assert outcome.sample is not None and outcome.prediction is not None
        yield outcome.sample, outcome.prediction


def calibrate_model(
    folder: str | Path,
    dataset: str,
    root: str | Path,
    *,
    categories: Sequence[str],
    split: str = "validation",
    false_alarms: float | None = None,
    pixel_area: float | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Choose the operating point of a saved model and keep it in the model, with a `calibrate.json` beside it.

    Args:
        folder: a saved model; it stays loadable throughout.
        dataset: name of the dataset's kind.
        root: folder of the dataset.
        categories: those the model is for.
        split: "validation" or "test". A threshold that was chosen on the test split makes figures on it flatter.
        false_alarms: rate on normal parts, from the split's normal samples; None for the best F1, from all its samples.
        pixel_area: mean share of a normal part's pixels above the pixel threshold; None for no pixel threshold.
        options: of the dataset.

    Returns:
        The content of calibrate.json.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError, DataError: as `choose_point`; unknown names.
        StorageError: the folder cannot be written; the model is as it was.
    """
    detector = load_detector(folder)
    folder = require_writable(folder)
    names = choose_categories(dataset, root, categories)
    opened = [open_splits(dataset, root, name, detector, options or {}, (split,))[split] for name in names]
    wanted = [(part, [record for record in part.records if false_alarms is None or record.label != 1]) for part in opened]
    samples = Selection(wanted)
    if not len(samples):
        raise DataError(
            f"{root} has no samples in {split} of {', '.join(names)}; choose another --split, or another data set of good parts"
        )
    if false_alarms is None:
        _require_both(wanted, f"{split} of {', '.join(names)}")
    point = choose_point(detector, samples, false_alarms=false_alarms, pixel_area=pixel_area)
    detector.operating_point = point
    detector.save(folder)
    result = {
        "folder": str(folder),
        "mm3dad": __version__,
        "method": detector.name,
        "dataset": {"name": dataset, "root": str(Path(root).resolve()), "options": options or {}},
        "categories": names,
        "split": split,
        "asked": {"false_alarms": false_alarms, "pixel_area": pixel_area},
        "confidence": CONFIDENCE,
        "normals": len(point.normal_scores),
        "normals_needed": None if false_alarms is None else normals_needed(false_alarms),
        "normals_needed_confident": None if false_alarms is None else normals_needed(false_alarms, CONFIDENCE),
        "samples": samples.ids,
        "data_sha256": fingerprint(opened),
        **point.to_dict(),
    }
    files.write_json(folder / "calibrate.json", result)
    return result


def _require_both(wanted: Sequence[tuple[Dataset, Sequence[Record]]], where: str) -> None:
    """Refuse parts of one kind before they are scored, which may take long."""
    labels = {record.label for _, records in wanted for record in records}
    lacks = [name for label, name in ((0, "good"), (1, "defective")) if label not in labels]
    if lacks:
        raise DataError(
            f"the best F1 needs normal and defective samples, {where} has no {' and no '.join(lacks)} ones; "
            "choose another --split, or a rate by --false-alarms"
        )
