"""`write_report`: the result folder of `evaluate` or `predict` as one HTML file that needs no network."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mm3dad import files
from mm3dad.errors import DataError
from mm3dad.metrics import pro_curve
from mm3dad.view.charts import draw_curve, draw_histogram, pr_points, roc_points
from mm3dad.view.colors import heat_table
from mm3dad.view.frame import draw_page
from mm3dad.view.gallery import Gallery
from mm3dad.view.outputs import Output, Row, Run, read_maps, read_output
from mm3dad.view.tables import RATES, draw_defects, draw_facts, draw_metrics, draw_table, draw_weights, number, text

PROVENANCE = ("dataset", "model", "failures", "config", "protocol", "arguments", "machine")


def write_report(out_dir: str | Path, html: str | Path | None = None) -> Path:
    """Write the report of a result folder: tables, curves, the samples worth a look, and where the numbers come from.

    What a folder lacks (labels, masks, maps, thresholds, moved pictures) is left out or said, never an error.

    Args:
        out_dir: the `--out` folder of evaluate or predict.
        html: the file to write; report.html in `out_dir` when None.

    Raises:
        DataError: not a result folder, or its JSON is damaged.
        StorageError: the report cannot be written.
    """
    output = read_output(out_dir)
    path = Path(html) if html is not None else output.folder / "report.html"
    return files.write_text(path, render_report(output))


def render_report(output: Output) -> str:
    """Return the report as HTML."""
    title = _title(output)
    shown = output.first_runs()
    gallery = Gallery(len(shown))
    body = [f"<header><h1>{text(title)}</h1>{_summary(output)}</header>"]
    body.append(_section("Results", _tables(output)) if output.kind == "evaluate" else "")
    body += [_category(run, gallery, output.kind) for run in shown]
    if not shown:
        body.append("<p class='quiet'>No scored samples were kept in this folder.</p>")
    body.append(_section("Where these numbers come from", _provenance(output)))
    colors = [*heat_table()[::32].tolist(), heat_table()[-1].tolist()]
    stops = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colors)
    return draw_page(title, "\n".join(part for part in body if part), f".heat {{ background: linear-gradient(to right, {stops}); }}\n")


def _title(output: Output) -> str:
    if output.kind == "predict":
        return f"Predictions in {output.folder.resolve().name}"
    dataset = output.result.get("dataset")
    name = dataset.get("name") if isinstance(dataset, Mapping) else dataset
    return f"{output.result.get('method') or 'method'} on {name or 'a dataset'}"


def _summary(output: Output) -> str:
    """The few numbers that a reader looks for first."""
    if output.kind == "predict":
        rows = [row for run in output.runs for row in run.rows]
        called = [row.score > row.threshold for row in rows if row.threshold is not None]
        facts = {"samples": str(len(rows)), "called defective": f"{sum(called)} of {len(called)}" if called else "no threshold"}
        judged = [row.is_outside for row in rows if row.is_outside is not None]
        facts |= {"unlike all parts fitted on": f"{sum(judged)} of {len(judged)}"} if any(judged) else {}
        times = [row.predict_ms for row in rows if row.predict_ms is not None]
        if times:
            facts |= {f"predict p{share}": f"{number(float(np.percentile(times, share)))} ms" for share in (50, 95)}
        facts |= {"bank": number(output.result["bank_bytes"], "bank_bytes")} if output.result.get("bank_bytes") else {}
    else:
        mean = output.result.get("mean")
        mean = mean if isinstance(mean, Mapping) else {}
        facts = {RATES[name]: number(mean.get(name), name) for name in ("image_auroc", "aupro_30") if mean.get(name) is not None}
        facts |= {"predict p50": f"{number(mean['predict_ms_p50'])} ms"} if mean.get("predict_ms_p50") is not None else {}
        facts |= {"predict p95": f"{number(mean['predict_ms_p95'])} ms"} if mean.get("predict_ms_p95") is not None else {}
        facts |= {"bank": number(mean["bank_bytes"], "bank_bytes")} if mean.get("bank_bytes") is not None else {}
        count = len(output.result.get("categories") or {})
        facts |= {"category" if count == 1 else "categories": str(count)}
    protocol = output.result.get("protocol")
    transductive = isinstance(protocol, Mapping) and protocol.get("transductive") is True
    told = "<p class='warning'>Transductive: every score depends on the other samples of the test set.</p>" if transductive else ""
    unfinished = output.result.get("complete") is False
    warning = "<p class='warning'>This evaluation is not finished; run the same command again to resume it.</p>" if unfinished else ""
    return f"{warning}{told}<ul class='facts'>{''.join(f'<li><b>{value}</b>{text(name)}</li>' for name, value in facts.items())}</ul>"


def _tables(output: Output) -> str:
    result = output.result
    by_shots = result.get("by_shots")
    tables = by_shots if isinstance(by_shots, Mapping) and by_shots else {"": result}
    parts = [
        (f"<h3>{text('all training samples' if shots == 'full' else f'{shots}-shot')}</h3>" if shots else "") + draw_metrics(table)
        for shots, table in tables.items()
        if isinstance(table, Mapping)
    ]
    runs = [run for run in result.get("runs") or [] if isinstance(run, Mapping) and isinstance(run.get("metrics"), Mapping)]
    if len(runs) > len(result.get("categories") or {}):
        names = [name for name in RATES if any(run["metrics"].get(name) is not None for run in runs)]
        lines = [
            (
                "",
                [
                    text(run.get("category")),
                    text(run.get("seed")),
                    text("all" if run.get("shots") in (None, "full") else run["shots"]),
                    *(number(run["metrics"].get(name), name) for name in names),
                ],
            )
            for run in runs
        ]
        every = draw_table(["category", "seed", "shots", *(text(RATES[name]) for name in names)], lines, "metrics")
        parts.append(f"<details><summary>every run ({len(runs)})</summary>{every}</details>")
    return "".join(parts) + _notes(runs)


def _notes(runs: list[Mapping[str, Any]]) -> str:
    """Say why a metric is missing, once per reason."""
    reasons: dict[str, set[str]] = {}
    for run in runs:
        notes = run["metrics"].get("notes")
        for name, reason in (notes if isinstance(notes, Mapping) else {}).items():
            reasons.setdefault(f"{run.get('category')}: {reason}", set()).add(RATES.get(str(name), str(name)))
    items = "".join(f"<li>{text(reason)} ({text(', '.join(sorted(names)))})</li>" for reason, names in reasons.items())
    return f"<p class='quiet'>Not defined:</p><ul class='quiet'>{items}</ul>" if items else ""


def _category(run: Run, gallery: Gallery, kind: str) -> str:
    finite = [row for row in run.rows if np.isfinite(row.score)]
    labels = [row.label for row in finite if row.label is not None]
    names = {0: "good", 1: "defective", None: "unknown"}
    groups = {name: [row.score for row in finite if row.label == label] for label, name in names.items()}
    groups = {name: scores for name, scores in groups.items() if scores}
    thresholds = {row.threshold for row in finite if row.threshold is not None}
    threshold = thresholds.pop() if len(thresholds) == 1 else None
    keys = "".join(f"<span class='key {name}'>{name} ({len(scores)})</span>" for name, scores in groups.items())
    keys += f"<span class='key threshold'>threshold {number(threshold)}</span>" if threshold is not None else ""
    charts = [f"<div><h4>scores</h4>{draw_histogram(groups, threshold)}<p class='keys'>{keys}</p></div>"]
    if len(labels) == len(finite) and {0, 1} <= set(labels):
        scores = [row.score for row in finite]
        curves = (
            ("ROC", draw_curve(roc_points(scores, labels), "false alarms", "defects found", diagonal=True)),
            ("precision and recall", draw_curve(pr_points(scores, labels), "recall", "precision", steps=True)),
        )
        charts += [f"<div><h4>{name}</h4>{chart}</div>" for name, chart in curves]
        overlap = _overlap_curve(finite)
        charts += [f"<div><h4>region overlap (PRO)</h4>{overlap}</div>"] if overlap else []
    setting = [] if run.seed is None else [f"seed {run.seed}"]
    setting += [] if run.shots == "full" else [f"{run.shots}-shot"]
    defects = f"<h4>by defect</h4>{draw_defects(finite)}" if any(row.label == 1 for row in finite) else ""
    pictures = gallery.draw(run)
    legend = (
        "<p class='keys'>score map, low <span class='heat'></span> high; one scale for all samples here. Ground truth outlined in cyan.</p>"
    )
    return _section(
        run.category or ("Samples" if kind == "predict" else "all"),
        (f"<p class='quiet'>{text(', '.join(setting))}</p>" if setting else "")
        + f"<div class='charts'>{''.join(charts)}</div>{defects}"
        + (legend + pictures if pictures else "<p class='quiet'>The report's room for pictures is used up by the categories above.</p>"),
    )


def _overlap_curve(rows: list[Row]) -> str:
    """Draw the PRO curve where every defective sample has a kept map and mask; a good sample's mask is empty."""
    maps, masks = [], []
    for row in rows:
        found = read_maps(row, ("map", "mask"))
        if "map" not in found or ("mask" not in found and row.label != 0):
            return ""
        maps.append(found["map"])
        masks.append(found["mask"] > 0 if "mask" in found else np.zeros(found["map"].shape, bool))
    try:
        points = pro_curve(maps, masks)
    except DataError:  # no defect pixel, or nothing else
        return ""
    return draw_curve(points, "false-positive area", "region overlap", right=float(points[-1, 0]))


def _provenance(output: Output) -> str:
    result = output.result
    command = result.get("command")
    shown = shlex.join(map(str, command)) if isinstance(command, list) else command
    if shown is None and isinstance(result.get("arguments"), list):
        shown = shlex.join(map(str, result["arguments"]))
    parts = [f"<h4>command</h4><pre>{text(shown)}</pre>" if shown else ""]
    if not result:
        return draw_facts({"folder": output.folder.resolve()})
    parts.append(f"<h4>versions</h4>{draw_facts({'mm3dad': result.get('mm3dad'), **_mapping(result.get('versions'))})}")
    parts.append(f"<h4>weights</h4>{draw_weights(result.get('weights'))}")
    for name in PROVENANCE:
        if result.get(name):
            value = result[name]
            inside = draw_facts(value if isinstance(value, Mapping) else {name: value})
            parts.append(
                f"<details{' open' if name in ('dataset', 'model', 'failures') else ''}><summary>{name}</summary>{inside}</details>"
            )
    return "".join(parts)


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{text(title)}</h2>{inside}</section>"
