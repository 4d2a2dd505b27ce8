"""The plots of the benchmark page: SVG that stands alone, without a stylesheet."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = ("#1f6feb", "#bc4c00", "#1a7f37", "#8250df", "#9a6700")
INK, FAINT = "#57606a", "#d0d7de"
BAR, LEFT, WIDE = 22, 330, 420
FIGURE = 34  # width of the figure behind a bar


def draw_ratios(bars: Sequence[Mapping[str, Any]]) -> str:
    """Draw how many times faster ours is, one bar a peer on a logarithmic scale; a tick across a bar is the figure to reach.

    Args:
        bars: `label`, `ratio`, `reach` (or None) of each.
    """
    values = [value for bar in bars for value in (bar["ratio"], bar["reach"]) if value]
    low, high = math.floor(math.log10(min([*values, 1]))), math.ceil(math.log10(max([*values, 10])))

    def place(value: float) -> float:
        return LEFT + WIDE * (math.log10(value) - low) / (high - low)

    body = [_line(place(10**power), 14, place(10**power), 18 + BAR * len(bars), FAINT) for power in range(low, high + 1)]
    body += [_text(place(10**power), 10, f"{10.0**power:g} x", "middle") for power in range(low, high + 1)]
    for number, bar in enumerate(bars):
        y = 18 + BAR * number
        start, end = sorted((place(1), place(bar["ratio"])))
        met = bar["reach"] is None or bar["ratio"] >= bar["reach"]
        body.append(f'<rect x="{start:.1f}" y="{y + 4}" width="{end - start:.1f}" height="{BAR - 8}" fill="{COLOURS[0 if met else 1]}"/>')
        body.append(_text(LEFT - 6, y + 15, bar["label"], "end"))
        if bar["reach"]:
            tick = place(bar["reach"])
            body.append(_line(tick, y + 1, tick, y + BAR - 1, "#1f2328", 2))
            end = tick if end < tick < end + FIGURE else end
        body.append(_text(end + 4, y + 15, f"{bar['ratio']:.3g}", "start"))
    return _frame(LEFT + WIDE + 60, 24 + BAR * len(bars), body, "ratio of medians")


def draw_growth(sizes: Sequence[float], curves: Mapping[str, Sequence[float]], unit: str) -> str:
    """Draw seconds over size, both logarithmic, one line a side."""
    left, top, width, height = 60, 12, 300, 170
    xs, ys = sizes, [value for curve in curves.values() for value in curve]
    bottom, ceiling = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    ceiling = max(ceiling, bottom + 1)

    def spot(size: float, seconds: float) -> tuple[float, float]:
        along = math.log(size / min(xs)) / max(math.log(max(xs) / min(xs)), 1e-9)
        return left + width * along, top + height * (ceiling - math.log10(seconds)) / (ceiling - bottom)

    body = []
    for power in range(bottom, ceiling + 1):
        y = spot(min(xs), 10.0**power)[1]
        body += [_line(left, y, left + width, y, FAINT), _text(left - 6, y + 4, f"{10.0**power:g} s", "end")]
    body += [_text(spot(size, 1)[0], top + height + 15, f"{size:,}", "middle") for size in xs]
    body.append(_text(left + width / 2, top + height + 31, unit, "middle"))
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(spot, xs, curve))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body.append(_text(left + width + 6, spot(xs[-1], curve[-1])[1] + 4, name, "start", colour))
    return _frame(left + width + 150, top + height + 38, body, f"seconds over {unit}")


def draw_panels(panels: Sequence[tuple[str, Sequence[str], Mapping[str, Sequence[float | None]]]], columns: int = 3) -> str:
    """Draw small plots of a score from 0.5 to 1, side by side, one line a side; a value that is not known is left out.

    Args:
        panels: title, the words along the axis, and for each side one value a word.
        columns: plots in a row.
    """
    left, top, width, height, across, down = 34, 26, 220, 110, 300, 180
    body = []
    for number, (title, words, curves) in enumerate(panels):
        x0, y0 = left + across * (number % columns), top + down * (number // columns)
        body.append(_text(x0, y0 - 8, title, "start"))
        for tick in (0.5, 0.75, 1.0):
            y = y0 + height * (1 - tick) * 2
            body += [_line(x0, y, x0 + width, y, FAINT), _text(x0 - 4, y + 4, f"{tick:g}", "end")]
        spots = [x0 + width * place / max(len(words) - 1, 1) for place in range(len(words))]
        body += [_text(x, y0 + height + 14, word, "middle") for x, word in zip(spots, words, strict=True)]
        names = []
        for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
            known = [(x, y0 + height * (1 - max(value, 0.5)) * 2) for x, value in zip(spots, curve, strict=True) if value is not None]
            if known:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in known)
                body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
                names.append((known[-1][1] + 4, known[-1][0] + 4, name, colour))
        lowest = 0.0
        for y, x, name, colour in sorted(names):
            lowest = max(y, lowest + 12)  # curves that end together would print one name over the other
            body.append(_text(x, lowest, name, "start", colour))
    rows = -(-len(panels) // columns)
    return _frame(
        left + across * min(columns, max(len(panels), 1)), top + down * max(rows, 1), body, "image AUROC over the strength of faults"
    )


def _text(x: float, y: float, words: str, anchor: str, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _frame(width: float, height: float, body: Sequence[str], name: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    style = f'aria-label="{html.escape(name)}" font-family="sans-serif" font-size="11"'
    return f'{head} {style}><rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n'
