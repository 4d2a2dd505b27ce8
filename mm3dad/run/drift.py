"""How parts that were scored lately compare with those a model was fitted on: whether the sensors, or the product, moved away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mm3dad import __version__, files
from mm3dad.errors import DataError
from mm3dad.features.condition import NAMES
from mm3dad.methods import load_detector
from mm3dad.metrics import auroc, bootstrap_auroc
from mm3dad.scoring.outside import judge_run
from mm3dad.scoring.promise import CONFIDENCE, proportion_interval

BLOCKS = 12  # stretches of time whose rates are told one by one, of equal numbers of parts
LEAST = 20  # parts in such a stretch
KEPT = ("predictions.json", "watch.jsonl")
Values = dict[str, tuple[np.ndarray, np.ndarray]]


def measure_drift(folder: str | Path, results: str | Path) -> tuple[dict[str, Any], Values]:
    """Compare scored parts with the held-out normal samples of the model that scored them.

    Args:
        folder: the saved model.
        results: the --out folder of `predict`, with or without --watch, or its file of rows; the order is that of scoring.

    Returns:
        The report as plain values: `outside` (how many parts were called outside, its interval, the calibrated rate, whether the rate is
        exceeded, and the rate in stretches of time), `defective`, `recording` (whether the parts were recorded as the normal samples were,
        with a p-value and the calibrated rate; None for a model that does not know), `quantities`: for each modality's image score, its
        distances from the most similar normal part and its recording the chance that a part exceeds a normal one (0.5: nothing moved),
        with its interval. And the values themselves, by quantity: those of the normal samples, those of the parts.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: its method keeps nothing of its normal samples to compare with.
        DataError: no rows, or rows of another version that lack what is compared.
    """
    detector = load_detector(folder)
    normals = {name: values.double().numpy() for name, values in detector.describe_normals().items()}
    rows = [row for row in _read_rows(Path(results)) if isinstance(row, dict) and row.get("error") is None]
    flags = [bool(row["is_outside"]) for row in rows if row.get("is_outside") is not None]
    if not flags:
        raise DataError(f"{results} holds no part with a word on whether it lies outside; score parts with this model first")
    alarms = [bool(row["is_anomaly"]) for row in rows if row.get("is_anomaly") is not None]
    values: Values = {}
    for name, known in normals.items():
        found = np.array([row["parts"][name] for row in rows if name in (row.get("parts") or {})], dtype=np.float64)
        if len(found):
            values[name] = known, found
    if not values:
        raise DataError(f"the rows of {results} lack scores of the modalities; score the parts again with this version")
    result = {
        "format": files.RESULT_FORMAT,
        "mm3dad": __version__,
        "model": str(Path(folder).resolve()),
        "results": str(Path(results).resolve()),
        "confidence": CONFIDENCE,
        "parts": len(rows),
        "normals": len(next(iter(normals.values()))),
        "outside": {**_rate(flags, float(detector.config.outside_rate)), "stretches": _stretches(flags)},
        "defective": _rate(alarms, float(detector.config.false_alarms)) if alarms else None,
        "recording": _judge_recording(values, float(detector.config.outside_rate)),
        "quantities": {name: _shift(*pair) for name, pair in values.items()},
    }
    return result, values


def _read_rows(path: Path) -> list[Any]:
    if path.is_dir():
        found = [path / name for name in KEPT if (path / name).is_file()]
        if not found:
            raise DataError(f"expected {' or '.join(KEPT)} in {path}, found neither; give the --out folder of predict")
        path = found[0]
    rows = files.read_lines(path) if path.suffix == ".jsonl" else files.read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"expected rows of scored parts in {path}, found {type(rows).__name__}; give what predict wrote")
    return rows


def _rate(flags: list[bool], promised: float) -> dict[str, Any]:
    low, high = proportion_interval(sum(flags), len(flags))
    return {
        "count": sum(flags),
        "of": len(flags),
        "share": sum(flags) / len(flags),
        "interval": [low, high],
        "calibrated": promised,
        "exceeded": low > promised,
    }


def _stretches(flags: list[bool]) -> list[dict[str, Any]]:
    count = max(1, min(BLOCKS, len(flags) // LEAST))
    return [{"count": int(block.sum()), "of": len(block)} for block in np.array_split(np.array(flags), count)]


def _judge_recording(values: Values, rate: float) -> dict[str, Any] | None:
    names = [f"{modality}_{name}" for modality, own in NAMES.items() for name in own if f"{modality}_{name}" in values]
    if not names:
        return None
    chance, moved = judge_run({name: values[name][1] for name in names}, {name: values[name][0] for name in names}, rate)
    return {"p_value": chance, "calibrated": rate, "moved": moved}


def _shift(normals: np.ndarray, parts: np.ndarray) -> dict[str, Any]:
    scores, labels = np.concatenate([normals, parts]), np.repeat([0, 1], [len(normals), len(parts)])
    low, high = bootstrap_auroc(scores, labels)
    return {
        "median_normal": float(np.median(normals)),
        "median_parts": float(np.median(parts)),
        "exceeds": auroc(scores, labels),
        "interval": [low, high],
        "moved": not low <= 0.5 <= high,
    }
