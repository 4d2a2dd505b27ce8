"""Score files and folders with a saved detector; one bad file never stops the others."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm3dad import files
from mm3dad.data.single import list_inputs
from mm3dad.errors import Mm3dadError
from mm3dad.methods import load_detector
from mm3dad.run._arguments import require_writable, require_writable_file
from mm3dad.run._chunks import OnSample, score_chunks, score_inputs, unique_name
from mm3dad.run._pool import Workers, check_workers
from mm3dad.run.progress import track
from mm3dad.run.rows import describe_model


@dataclass
class Predicted:
    """Result of `predict_inputs`: a row per scored sample, and (path, reason) per failure."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


def predict_inputs(
    folder: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path | None = None,
    json: str | Path | None = None,
    on_sample: OnSample | None = None,
    on_row: Callable[[dict[str, Any]], object] | None = None,
    workers: Workers = 1,
) -> Predicted:
    """Score every sample that the inputs name, and keep the results.

    Args:
        folder: a saved model.
        inputs: files, or folders whose samples are all taken; a file inside a dataset tree names the whole sample.
        out: where predictions.json, predict.json (model, versions, command) and maps/*.safetensors go, maps at the sample's own
            resolution; None keeps nothing.
        json: where the list of rows goes.
        on_sample: called with each sample, its prediction and its row where it is scored: with workers, a function of a module.
        on_row: called here with each row, as they come.
        workers: processes that share the samples, each with one thread and the model; "ray", "ray:N" or "ray:ADDRESS" for those of a
            cluster (docs/scale.md). They need `out`, where an interrupted call goes on.

    Returns:
        The rows in the order of the inputs, and the inputs that failed with the reason; what was scored before an interruption is on disk.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: workers without `out`, for a method that scores the set as a whole, or no such cluster.
        StorageError: the results cannot be written, or a worker was lost; what was finished stays.
    """
    workers = check_workers(workers)
    detector = load_detector(folder)
    out = require_writable(out) if out is not None else None
    if json is not None:
        require_writable_file(json)
    result = Predicted()
    paths: list[Path] = []
    for entry in inputs:
        try:
            paths.extend(list_inputs(entry))
        except Mm3dadError as error:
            result.failures.append((str(entry), str(error)))
    taken: set[str] = set()
    if workers in (None, 1):
        found = score_inputs(detector, paths, lambda _, sample: unique_name(sample.meta.id, taken), out, on_sample)
        scored = track(found, "predict", len(paths))
    else:
        scored = score_chunks(detector, folder, paths, out, on_sample, workers)
    rows: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    try:
        for position, row in scored:
            if isinstance(row, str):
                reasons[position] = row
                continue
            rows[position] = row
            if on_row is not None:
                on_row(row)
    finally:
        result.rows = [rows[position] for position in sorted(rows)]
        result.failures += [(str(paths[position]), reasons[position]) for position in sorted(reasons)]
        if out is not None:
            files.write_json(out / "predictions.json", result.rows)
            command = shlex.join(["mm3dad", "predict", str(folder), *map(str, inputs), "--out", str(out)])
            failures = dict(result.failures)
            files.write_json(
                out / "predict.json",
                {"format": files.RESULT_FORMAT, **describe_model(detector, folder), "command": command, "failures": failures},
            )
        if json is not None:
            files.write_json(json, result.rows)
    return result
