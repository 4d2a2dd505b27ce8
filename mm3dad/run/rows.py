"""What `predict`, `watch` and `serve` write of a sample, and where their numbers come from."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mm3dad import __version__
from mm3dad.run._arguments import list_versions

if TYPE_CHECKING:
    from mm3dad.methods import Detector
    from mm3dad.types import Prediction, Sample


def absolute_paths(sample: Sample) -> dict[str, str]:
    """Return the sample's files by role, so that a viewer started elsewhere finds them."""
    return {role: str(Path(path).resolve()) for role, path in sample.meta.paths.items()}


def describe_row(sample: Sample, prediction: Prediction, milliseconds: float) -> dict[str, Any]:
    """Return one scored sample as plain values, without its map.

    Args:
        sample: what was scored.
        prediction: what the detector says.
        milliseconds: wall time of the prediction.
    """
    return {
        "id": sample.meta.id,
        "label": sample.label,
        "defect": sample.meta.defect,
        "score": float(prediction.score),
        "threshold": prediction.threshold,
        "is_anomaly": prediction.is_anomaly,
        "calibrated": prediction.calibrated,
        "p_value": prediction.p_value,
        "is_outside": prediction.is_outside,
        "outside_p_value": prediction.outside_p_value,
        "pixel_threshold": prediction.pixel_threshold,
        "parts": {name: float(value) for name, value in prediction.parts.items() if value.ndim == 0},
        "predict_ms": round(milliseconds, 3),
        "paths": absolute_paths(sample),
        "file": None,
    }


def describe_model(detector: Detector, folder: str | Path) -> dict[str, Any]:
    """Return what a result needs to be traced to a saved model: method, configuration, weights, versions, machine."""
    point = detector.operating_point
    return {
        "mm3dad": __version__,
        "method": detector.name,
        "config": dataclasses.asdict(detector.config),
        "model": {
            "folder": str(Path(folder).resolve()),
            "operating_point": None if point is None else {k: v for k, v in point.to_dict().items() if k != "normal_scores"},
        },
        "weights": detector.weights,
        "bank_bytes": detector.bank_bytes,
        "versions": list_versions(),
        "machine": describe_machine(str(getattr(detector.config, "device", "cpu"))),
    }


def describe_machine(device: str) -> dict[str, Any]:
    """Return what a time depends on besides the versions."""
    return {"cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), "processor": platform.machine(), "device": device}
