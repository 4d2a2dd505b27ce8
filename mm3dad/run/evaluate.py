"""Evaluate methods by the protocol of docs/protocol.md: categories x seeds x shots into one table, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mm3dad
from mm3dad import files
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.run._arguments import list_versions, require_writable, require_writable_file
from mm3dad.run._lock import held
from mm3dad.run._pool import Workers, check_workers, describe_workers, run_parallel
from mm3dad.run._request import Request, check_request
from mm3dad.run._runs import Run
from mm3dad.run._unit import Finished, Unit, run_unit
from mm3dad.run.auxiliary import describe_auxiliary, uses_normals
from mm3dad.run.measure import EVAL_SIZE, measure, parse_eval_size, peak_memory, read_scored, score_samples
from mm3dad.run.progress import track
from mm3dad.run.rows import describe_machine
from mm3dad.run.table import shots_name, summarise_shots, write_csv
from mm3dad.types import Sample

if TYPE_CHECKING:
    from mm3dad.methods import Detector


def evaluate_detector(
    detector: Detector, dataset: Sequence[Sample], eval_size: int | str = EVAL_SIZE, keep: str | Path | None = None
) -> dict[str, Any]:
    """Score a fitted detector on a dataset by the protocol.

    Args:
        detector: fitted.
        dataset: a test split, or any sequence of labelled samples.
        eval_size: side of the square the maps are compared at, or "native".
        keep: folder for maps/*.safetensors; None keeps nothing.

    Returns:
        The metrics of docs/protocol.md; None where the data cannot define one, with the reason in `notes`.

    Raises:
        ModelError: not fitted.
        DataError: no samples, one without a label, or one that cannot be scored.
    """
    if not detector.is_fitted:
        raise ModelError(f"{detector.name} is not fitted; call fit(samples) or mm3dad.load(folder) first")
    scored = score_samples(detector, dataset, parse_eval_size(eval_size), None if keep is None else require_writable(keep))
    return {**measure(scored), "bank_bytes": detector.bank_bytes, "peak_rss_bytes": peak_memory()}


def default_out(method: str, dataset: str, json_path: str | Path | None) -> Path:
    """Return the folder that keeps the state: beside the JSON and named after it, else out/<method>-<dataset>."""
    if json_path is None:
        return Path("out") / f"{method}-{dataset}"
    path = Path(json_path)
    return path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-runs")


def evaluate(
    method: str,
    dataset: str,
    root: str | Path,
    *,
    categories: Sequence[str] | None = None,
    shots: Sequence[int | None] = (None,),
    seeds: Sequence[int] = (0,),
    options: dict[str, Any] | None = None,
    multiclass: bool = False,
    eval_size: int | str = EVAL_SIZE,
    device: str | None = "cpu",
    out: str | Path | None = None,
    json_path: str | Path | None = None,
    overwrite: bool = False,
    rescore: bool = False,
    auxiliary: str | None = None,
    workers: Workers = 1,
) -> dict[str, Any]:
    """Fit and score every category under every seed and number of shots; return and keep the table.

    Each finished run is kept under `out` and taken from there the next time; categories, seeds and shots may be
    added later, any other change is an error unless `overwrite`.

    Args:
        method: name of the method.
        dataset: name of the dataset's kind.
        root: folder of the dataset.
        categories: None for all.
        shots: numbers of normal samples to fit on, None for all.
        seeds: they govern the detector (choice of shots, coreset, training), never the data.
        options: of the method and of the dataset.
        multiclass: one model for all categories instead of one each.
        eval_size: side of the square the maps are compared at, or "native".
        device: auto, cpu, cuda or cuda:N.
        out: keeps evaluate.json, table.csv and runs/; by default a folder beside `json_path`, named after it.
        json_path: a further copy of evaluate.json.
        overwrite: drop runs that are there.
        rescore: compute the metrics again from the kept maps, without predicting.
        auxiliary: DATASET:ROOT[:CATEGORY,...], the labelled set of a method that needs one; by default the other categories of `root`.
        workers: processes that share the fits, each with one thread; "ray", "ray:N" or "ray:ADDRESS" for those of a cluster
            (docs/scale.md). With 1 all happens here, with the threads there are.

    Returns:
        The content of evaluate.json (docs/protocol.md).

    Raises:
        ConfigError: unknown names or options, another evaluation's folder, or no such cluster.
        DataError: data that cannot be fitted or scored.
        StorageError: a result cannot be written, or a worker was lost; what was finished stays.
    """
    workers = check_workers(workers)
    if overwrite and rescore:
        raise ConfigError("--overwrite and --rescore exclude each other; rescore keeps the predictions that overwrite drops")
    request = check_request(method, dataset, root, categories, shots, seeds, options or {}, multiclass, eval_size, device, auxiliary)
    out = require_writable(out if out is not None else default_out(method, dataset, json_path))
    if json_path is not None:
        require_writable_file(json_path)
    with held(out, "", "runs/*", "runs/*/maps"):
        return _run_all(request, out, json_path, overwrite, rescore, workers)


def _run_all(request: Request, out: Path, json_path: str | Path | None, overwrite: bool, rescore: bool, workers: Workers) -> dict[str, Any]:
    """Make the runs that are not finished, and write the table after each."""
    groups = request.plan(out)
    runs = [run for group in groups for run in group]
    finished = {} if overwrite else _reuse(runs, rescore)
    result = _write(request, runs, finished, out, json_path, workers) if finished else {}
    units = [unit for group in groups if (unit := request.unit(group, finished, overwrite)) is not None]
    for found in _do(units, workers, out, request.device):
        finished |= dict(found)
        result = _write(request, runs, finished, out, json_path, workers)
    return result


def _do(units: Sequence[Unit], workers: Workers, out: Path, device: str) -> Iterator[list[Finished]]:
    """Yield runs as they are finished: here one by one, with the progress of each; from workers those of a unit."""
    if workers in (None, 1):
        for unit in units:
            yield from ([found] for found in unit.run())
        return
    jobs, names = [(unit,) for unit in units], [unit.title for unit in units]
    gpus = int(device != "cpu")
    yield from track(run_parallel(run_unit, jobs, workers, names=names, shared=out, gpus=gpus), "evaluate", len(units))


def _reuse(runs: Sequence[Run], rescore: bool) -> dict[Path, dict[str, Any]]:
    """Return what earlier calls finished, by folder; with `rescore`, measured again."""
    kept = {run.folder: run.read() for run in runs}
    for run in runs:
        content = kept[run.folder]
        if content is not None:
            run.require_same(content, rescore)
        elif rescore:
            raise DataError(f"expected kept predictions in {run.folder}, found none or not all; run once without --rescore")
    finished = {folder: content for folder, content in kept.items() if content is not None}
    if rescore:
        for run in runs:
            content = finished[run.folder]
            metrics = {**content["metrics"], **measure(read_scored(run.folder, content["samples"]))}
            finished[run.folder] = run.write(metrics, content["samples"], content["fitted_on"])
    return finished


def _write(
    request: Request,
    runs: Sequence[Run],
    finished: dict[Path, dict[str, Any]],
    out: Path,
    json_path: str | Path | None,
    workers: Workers,
) -> dict[str, Any]:
    """Write evaluate.json and table.csv of what is finished so far; return the former."""
    done = [run for run in runs if run.folder in finished]
    lines = [run.line(finished[run.folder]) for run in done]
    result = {
        "format": files.RESULT_FORMAT,
        "mm3dad": mm3dad.__version__,
        "method": request.method,
        "config": request.config(None),
        "dataset": {
            "name": request.dataset,
            "root": str(Path(request.root).resolve()),
            "categories": request.categories,
            "options": request.theirs,
        },
        "weights": request.weights,
        "protocol": {
            "split": "test",
            "eval_size": request.eval_size,
            "map_resize": "bilinear",
            "mask_resize": "nearest",
            "mean": "macro over categories",
            "aupro": "exact; *_ref100 is the published 100-threshold definition",
            "shots": [shots_name(count) for count in request.shots],
            "seeds": request.seeds,
            "models": "one model for all categories" if request.multiclass else "one model per category",
            "transductive": "transductive" in request.probe.needs.settings,
            "zero_shot": not uses_normals(request.probe),
            "auxiliary": {name: describe_auxiliary(others) for name, others in request.others.items() if others} or None,
        },
        "versions": list_versions(),
        "machine": {**describe_machine(request.device), **describe_workers(workers)},
        "arguments": request.arguments(),
        "command": request.command(),
        "complete": len(done) == len(runs),
        "runs": lines,
        **summarise_shots(lines),
    }
    files.write_json(out / "evaluate.json", result)
    write_csv(out / "table.csv", result)
    if json_path is not None and result["complete"]:
        files.write_json(json_path, result)
    return result
