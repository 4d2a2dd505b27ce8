"""The drift report as a page: rates over time, and what parts and normal samples scored."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mm3dad import files
from mm3dad.view.charts import draw_curve, draw_histogram
from mm3dad.view.frame import draw_page


def write_drift(result: Mapping[str, Any], values: Mapping[str, tuple[np.ndarray, np.ndarray]], words: list[str], path: str | Path) -> Path:
    """Write what `run.drift.measure_drift` returned as a page that needs no other file.

    Args:
        result, values: as they were returned.
        words: the report in sentences.
        path: of the page.
    """
    stretches = result["outside"]["stretches"]
    rates = np.array([[(at + 0.5) / len(stretches), one["count"] / one["of"]] for at, one in enumerate(stretches)])
    rates = np.concatenate([[[0, rates[0, 1]]], rates, [[1, rates[-1, 1]]]])
    title = "parts called outside, over time"
    charts = [f"<figure>{draw_curve(rates, 'share of the time', 'share outside')}<figcaption>{title}</figcaption></figure>"]
    for name, (normals, parts) in values.items():
        # As many of either, evenly over time: beside thousands of parts the bars of the normal samples would vanish.
        some = parts[:: max(1, len(parts) // len(normals))]
        chart = draw_histogram({"good": normals, "unknown": some})
        charts.append(f"<figure>{chart}<figcaption>{html.escape(name)}: normal samples in blue, parts in grey</figcaption></figure>")
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in words)
    page = draw_page(f"drift of {result['model']}", f"<h1>Drift</h1>\n{lines}\n<div class='charts'>{''.join(charts)}</div>")
    return files.write_text(Path(path), page)
