"""From runs to one table: means over seeds, the macro mean over categories, CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mm3dad import files

METRICS = (
    "image_auroc",
    "image_ap",
    "image_f1",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1",
    "aupro_30",
    "aupro_01",
    "aupro_30_ref100",
    "samples",
    "fit_seconds",
    "predict_ms_p50",
    "predict_ms_p95",
    "bank_bytes",
    "peak_rss_bytes",
)
COUNTS = ("samples", "bank_bytes", "peak_rss_bytes")


def shots_name(shots: int | None) -> str:
    """Return how a number of shots is written in keys: "full" or "4"."""
    return "full" if shots is None else str(shots)


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean; None when any is undefined, so that a mean never silently stands for fewer categories than it names."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> float | None:
    """Sample standard deviation (n - 1); None for a single run, whose spread is unknown."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 and len(known) == len(values) else None


def _combine(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    means = {name: _mean([row.get(name) for row in rows]) for name in METRICS}
    counts = {name: round(value) for name in COUNTS if (value := means[name]) is not None}
    return {**means, **counts, "std": {name: _spread([row.get(name) for row in rows]) for name in METRICS}}


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return {"categories": {name: metrics}, "mean": metrics} of runs with one number of shots.

    A category is the mean over its seeds, with `std` beside and the bootstrap interval of the image AUROC of its
    first seed. The mean is the macro mean over categories; its `std` is that of the macro means of the seeds.
    """
    names = list(dict.fromkeys(run["category"] for run in runs))
    seeds = list(dict.fromkeys(run["seed"] for run in runs))
    categories = {}
    for name in names:
        own = [run["metrics"] for run in runs if run["category"] == name]
        categories[name] = {**_combine(own), "image_auroc_ci": own[0].get("image_auroc_ci")}
    per_seed = []
    for seed in seeds:
        own = [run["metrics"] for run in runs if run["seed"] == seed]
        if len(own) == len(names):
            per_seed.append({metric: _mean([row.get(metric) for row in own]) for metric in METRICS})
    mean = _combine(list(categories.values()))
    mean["std"] = {metric: _spread([row[metric] for row in per_seed]) for metric in METRICS}
    return {"categories": categories, "mean": mean}


def summarise_shots(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return `summarise` of the first number of shots, and all of them under `by_shots` when there are several."""
    counts = list(dict.fromkeys(run["shots"] for run in runs))
    tables = {shots_name(count): summarise([run for run in runs if run["shots"] == count]) for count in counts}
    first = tables[shots_name(counts[0])]
    return first if len(tables) == 1 else {**first, "by_shots": tables}


def tables_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return shots -> {"categories", "mean"} of an evaluation's result, whether it has one number of shots or several."""
    if "by_shots" in result:
        return dict(result["by_shots"])
    return {result["protocol"]["shots"][0]: {"categories": result["categories"], "mean": result["mean"]}}


def write_csv(path: str | Path, result: dict[str, Any]) -> Path:
    """Write one line per category and number of shots, and their means; undefined metrics are empty, a transductive method says so."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "dataset", "shots", "transductive", "category", *METRICS, *(f"{name}_std" for name in METRICS)])
    kind = "yes" if result["protocol"]["transductive"] else "no"
    for shots, table in tables_of(result).items():
        for category, row in _rows(table):
            values = [*(row[name] for name in METRICS), *(row["std"][name] for name in METRICS)]
            writer.writerow([result["method"], result["dataset"]["name"], shots, kind, category, *("" if v is None else v for v in values)])
    return files.write_text(path, buffer.getvalue())


def _rows(table: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    yield from table["categories"].items()
    yield "mean", table["mean"]
