"""Time and memory of a saved model, sample by sample, as a line would meet them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm3dad.data.single import list_inputs, read_sample
from mm3dad.data.synthetic import write_dataset
from mm3dad.errors import ConfigError
from mm3dad.methods import load_detector
from mm3dad.run.measure import peak_memory
from mm3dad.run.progress import track
from mm3dad.run.rows import describe_model
from mm3dad.run.watch import require_ready, score_one

WARM_UP = 3
SHARES = (50, 95, 99)


def benchmark_model(folder: str | Path, inputs: Sequence[str | Path] = (), *, repeats: int = 50, size: int = 400) -> dict[str, Any]:
    """Time reading and predicting of one sample at a time with a warm model.

    Args:
        folder: a saved model.
        inputs: files or folders; their samples are taken in turn. Without any, four synthetic parts are made.
        repeats: predictions that are timed, after a few that are not.
        size: side of the synthetic parts in pixels.

    Returns:
        p50, p95 and p99 of `read_ms`, `predict_ms` (features included) and their sum `total_ms`; `load_seconds`; `bank_bytes`,
        `model_bytes` on disk, and `peak_rss_bytes` of this process, libraries included; with model, versions and machine.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: repeats below 1, or a transductive method.
        DataError: a sample cannot be read or scored.
    """
    if repeats < 1:
        raise ConfigError(f"repeats must be at least 1, got {repeats}; 50 is the default")
    start = time.perf_counter()
    detector = load_detector(folder)
    loaded = time.perf_counter() - start
    require_ready(detector)
    modalities = getattr(detector.config, "modalities", None)
    with tempfile.TemporaryDirectory(prefix="mm3dad-") as made:
        if not inputs:
            counts = {"train": 1, "validation": 0, "good": 4, "defect": 0}
            inputs = [write_dataset(Path(made) / "parts", ["gasket"], size=size, counts=counts, workers=1) / "gasket" / "test"]
        paths = [path for entry in inputs for path in list_inputs(entry)]
        reading, predicting = [], []
        shape = (0, 0)
        for turn in track(range(WARM_UP + repeats), "benchmark"):
            start = time.perf_counter()
            sample = read_sample(paths[turn % len(paths)], modalities=modalities)
            read = 1000 * (time.perf_counter() - start)
            outcome = score_one(detector, sample)
            if outcome.error is not None:
                raise outcome.error
            shape = sample.size
            if turn >= WARM_UP:
                reading.append(read)
                predicting.append(outcome.milliseconds)
    total = np.add(reading, predicting)
    return {
        **describe_model(detector, folder),
        "inputs": [str(entry) for entry in inputs] if not str(paths[0]).startswith(made) else "synthetic",
        "samples": len(paths),
        "size": list(shape),
        "repeats": repeats,
        "warm_up": WARM_UP,
        "read_ms": _percentiles(reading),
        "predict_ms": _percentiles(predicting),
        "total_ms": _percentiles(total),
        "load_seconds": round(loaded, 3),
        "model_bytes": sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file()),
        "peak_rss_bytes": peak_memory(),
    }


def _percentiles(values: Any) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(values, share)), 3) for share in SHARES}
