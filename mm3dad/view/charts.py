"""Small charts as inline SVG: score histogram with threshold, ROC and precision-recall curves."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 300, 200
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 10, 34


def roc_points(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return the ROC curve (n, 2): false and true positive rate, from (0, 0) to (1, 1); equal scores are one step."""
    ranked, defective = _ranked(scores, labels)
    hits, alarms = np.cumsum(defective), np.cumsum(~defective)
    last = np.append(ranked[1:] != ranked[:-1], True)
    rates = np.stack([alarms[last] / max(1, alarms[-1]), hits[last] / max(1, hits[-1])], 1)
    return np.concatenate([[[0.0, 0.0]], rates])


def pr_points(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return the precision-recall curve (n, 2): recall, precision; it starts at recall 0 with the first step's precision."""
    ranked, defective = _ranked(scores, labels)
    hits = np.cumsum(defective)
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    points = np.stack([hits[last] / max(1, hits[-1]), hits[last] / (last + 1)], 1)
    return np.concatenate([[[0.0, points[0, 1]]], points])


def _ranked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, defective = np.asarray(scores, np.float64), np.asarray(labels).astype(bool)
    order = np.argsort(-values, kind="stable")
    return values[order], defective[order]


def draw_curve(
    points: NDArray[np.float64], x_label: str, y_label: str, steps: bool = False, diagonal: bool = False, right: float = 1.0
) -> str:
    """Draw a curve whose ordinate lies in [0, 1].

    Args:
        points: (n, 2), x in [0, right], y in [0, 1].
        steps: between two x, hold the y of the later one, as average precision sums it.
        diagonal: draw the line of chance.
        right: x at the right edge.
    """
    xs, ys = points[:, 0] / right, points[:, 1]
    if steps:
        xs, ys = np.repeat(xs, 2)[:-1], np.repeat(ys, 2)[1:]  # between two recalls the next precision holds
    path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    chance = f'<line class="chance" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>' if diagonal else ""
    ticks = [(value, f"{value:g}") for value in (0, 0.5, 1)]
    x_ticks = [(value, f"{value * right:g}") for value, _ in ticks]
    return _frame(f'{chance}<polyline class="curve" points="{path}"/>', x_ticks, ticks, x_label, y_label, f"{y_label} over {x_label}")


def draw_histogram(groups: Mapping[str, ArrayLike], threshold: float | None = None, bins: int = 24) -> str:
    """Draw score histograms of several groups over each other, with the threshold as a dashed line.

    Args:
        groups: name ("good", "defective", "unknown") -> scores; non-finite ones are left out.
        threshold: image threshold, or None.
    """
    values = {name: np.asarray(scores, np.float64) for name, scores in groups.items()}
    values = {name: scores[np.isfinite(scores)] for name, scores in values.items()}
    pooled = np.concatenate([*values.values(), [] if threshold is None else [threshold]])
    if pooled.size == 0:
        return '<p class="quiet">no scores</p>'
    low, high = float(pooled.min()), float(pooled.max())
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = low - 0.5 * max(abs(low), 1e-6), high + 0.5 * max(abs(high), 1e-6)
    edges = np.linspace(low, high, bins + 1)
    counts = {name: np.histogram(scores, edges)[0] for name, scores in values.items()}
    top = max(1, max(int(count.max()) for count in counts.values()))
    bars = []
    for name, count in counts.items():
        for index in np.flatnonzero(count):
            x, y = _x(index / bins), _y(count[index] / top)
            size = f'width="{_x(1 / bins) - LEFT:.1f}" height="{_y(0) - y:.1f}"'
            bars.append(f'<rect class="{html.escape(name)}" x="{x:.1f}" y="{y:.1f}" {size}/>')
    line = ""
    if threshold is not None:
        x = _x((threshold - low) / (high - low))
        line = f'<line class="threshold" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{_y(0)}"/>'
    x_ticks = [(position, f"{low + position * (high - low):.3g}") for position in (0, 0.5, 1)]
    return _frame("".join(bars) + line, x_ticks, [(0, "0"), (1, str(top))], "score", "samples", "histogram of scores")


def _x(unit: float) -> float:
    return LEFT + float(unit) * (WIDTH - LEFT - RIGHT)


def _y(unit: float) -> float:
    return TOP + (1 - float(unit)) * (HEIGHT - TOP - BOTTOM)


def _frame(inside: str, x_ticks: list[tuple[float, str]], y_ticks: list[tuple[float, str]], x_label: str, y_label: str, name: str) -> str:
    marks = ""
    for at, text in x_ticks:
        anchor = "start" if at == 0 else "end" if at == 1 else "middle"
        marks += f'<text x="{_x(at):.1f}" y="{_y(0) + 13}" text-anchor="{anchor}">{html.escape(text)}</text>'
    for at, text in y_ticks:
        marks += f'<text x="{LEFT - 5}" y="{_y(at) + 4:.1f}" text-anchor="end">{html.escape(text)}</text>'
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(name)}">'
        f'<rect class="field" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"/>{inside}{marks}'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text transform="translate(11 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{html.escape(y_label)}</text>'
        "</svg>"
    )
