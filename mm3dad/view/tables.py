"""HTML tables of the report: metrics per category, defects, and where the numbers come from."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mm3dad.view.outputs import Row

RATES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1": "image F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1": "pixel F1",
    "aupro_30": "AUPRO@0.3",
    "aupro_01": "AUPRO@0.01",
    "aupro_30_ref100": "AUPRO@0.3 (100 steps)",
}
COSTS = {
    "samples": "samples",
    "fit_seconds": "fit, s",
    "predict_ms_p50": "predict p50, ms",
    "predict_ms_p95": "predict p95, ms",
    "bank_bytes": "bank",
    "peak_rss_bytes": "peak memory",
}


def text(value: object) -> str:
    """Return a value as escaped HTML text."""
    return html.escape(str(value), quote=True)


def number(value: Any, name: str = "") -> str:
    """Format a metric by its kind: rates with three digits, bytes with a unit; a missing one is a dash."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    if name.endswith("_bytes"):
        for unit in ("B", "kB", "MB", "GB"):
            if abs(value) < 1000 or unit == "GB":
                return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
            value /= 1000
    if name in RATES:
        return f"{value:.3f}"
    if name == "samples":
        return f"{value:.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def draw_table(head: Iterable[str], lines: Iterable[tuple[str, Iterable[str]]], last: str = "") -> str:
    """Return a table that scrolls sideways on a phone; cells are HTML already.

    Args:
        head: column heads.
        lines: (class of the line, cells).
        last: class of the table.
    """
    heads = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    body = ""
    for kind, cells in lines:
        first, *rest = cells
        body += f"<tr class='{kind}'><th scope='row'>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
    return f"<div class='scroll'><table class='{last}'><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def draw_metrics(table: Mapping[str, Any]) -> str:
    """Return the table of categories with their mean; columns that no line has are left out."""
    listed = table.get("categories")
    categories = {name: row for name, row in listed.items() if isinstance(row, Mapping)} if isinstance(listed, Mapping) else {}
    mean = table.get("mean") if isinstance(table.get("mean"), Mapping) else None
    rows = [*categories.items(), *([("mean", mean)] if mean else [])]
    if not rows:
        return "<p class='quiet'>no category is finished yet</p>"
    names = [name for name in {**RATES, **COSTS} if any(row.get(name) is not None for _, row in rows)]
    lines = [("mean" if row is mean else "", [text(label), *(_cell(row, name) for name in names)]) for label, row in rows]
    note = ""
    if any(row.get("image_auroc_ci") for _, row in rows):
        note = "<p class='quiet'>In brackets: 95 % bootstrap interval over the test samples. ± is the spread over seeds.</p>"
    return draw_table(["category", *(text({**RATES, **COSTS}[name]) for name in names)], lines, "metrics") + note


def _cell(row: Mapping[str, Any], name: str) -> str:
    shown = number(row.get(name), name)
    spread = (row.get("std") or {}).get(name) if isinstance(row.get("std"), Mapping) else None
    if name in RATES and isinstance(spread, (int, float)):
        shown += f" <small>± {spread:.3f}</small>"
    interval = row.get(f"{name}_ci")
    if isinstance(interval, (list, tuple)) and len(interval) == 2 and all(isinstance(end, (int, float)) for end in interval):
        shown += f" <small>[{interval[0]:.3f}, {interval[1]:.3f}]</small>"
    return shown


def draw_defects(rows: list[Row]) -> str:
    """Return the breakdown by defect: samples, scores, how many are found at the threshold, AUROC against the good ones."""
    from mm3dad.metrics import auroc

    good = [row.score for row in rows if row.label == 0]
    names = sorted({row.defect or ("good" if row.label == 0 else "unknown") for row in rows}, key=lambda name: (name == "good", name))
    lines = []
    for name in names:
        own = [row for row in rows if (row.defect or ("good" if row.label == 0 else "unknown")) == name]
        scores = np.array([row.score for row in own])
        called = [row.score > row.threshold for row in own if row.threshold is not None]
        against = None
        if good and all(row.label == 1 for row in own) and np.isfinite(scores).all() and np.isfinite(good).all():
            against = auroc(np.concatenate([good, scores]), np.repeat([0, 1], [len(good), len(own)]))
        over = f"{sum(called)} of {len(called)}" if called else "–"
        lines.append(("", [text(name), str(len(own)), number(float(np.median(scores))), over, number(against, "image_auroc")]))
    return draw_table(["defect", "samples", "median score", "over the threshold", "AUROC against good"], lines, "defects")


def draw_facts(facts: Mapping[str, Any]) -> str:
    """Return a definition list of nested settings; empty values are left out."""
    items = "".join(f"<dt>{text(name)}</dt><dd>{_fact(value)}</dd>" for name, value in facts.items() if value not in (None, "", {}, []))
    return f"<dl>{items}</dl>" if items else "<p class='quiet'>not recorded</p>"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<br>".join(f"<span class='quiet'>{text(name)}</span> {_fact(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, (list, tuple)):
        if any(isinstance(inner, Mapping) for inner in value):
            return "<br>".join(_fact(inner) for inner in value)
        return text(", ".join(map(str, value)))
    return text(json.dumps(value) if isinstance(value, bool) else value)


def draw_weights(weights: Any) -> str:
    """Return the table of pretrained weights with their licences."""
    listed = [weights] if isinstance(weights, Mapping) else weights if isinstance(weights, list) else []
    listed = [one if isinstance(one, Mapping) else {"name": one} for one in listed]
    if not listed:
        return "<p>No pretrained weights.</p>"
    names = list(dict.fromkeys(["name", "licence", *(key for one in listed for key in one)]))
    lines = [("", [text(one.get(name)) if one.get(name) is not None else "–" for name in names]) for one in listed]
    return draw_table([text(name) for name in names], lines, "weights")
