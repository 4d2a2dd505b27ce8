"""The page of the benchmark, made of nothing but benchmarks.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.plots import draw_growth, draw_ratios
from mm3dad import files

HEAD = """# Benchmarks
Written by `make bench` (`python -m benchmarks`); the numbers are those of `benchmarks.json`, do not edit them here.

Both sides of a row get the same inputs and run in turn in one process. Times are medians, with the quartiles in brackets; the ratio is
that of the medians, peer over mm3dad, so that above 1 we are faster. *Differ* is the largest difference of the two results and what is
allowed; a figure counts as reached only where the results agree. Memory is the peak above what was resident before, of one run.
Peers that are packages are called as they are (`pip install -e '.[bench]'`); others are re-implemented from their description, and the
row says so.
"""


def write_page(found: dict[str, Any], page: Path) -> None:
    """Write the page and its plots into a folder beside it."""
    plots = page.with_suffix("")
    measured = {name: row for name, row in found["rows"].items() if "ours" in row}
    lines = [HEAD, *_machine(found), ""]
    bars = [
        {"label": f"{name} / {peer}", "ratio": side["ratio"], "reach": side["reach"]}
        for name, row in measured.items()
        for peer, side in row["peers"].items()
    ]
    if bars:
        files.write_text(plots / "ratios.svg", draw_ratios(bars))
        lines += [f"![ratios of medians; the tick is the figure to reach]({plots.name}/ratios.svg)", ""]
    lines += ["## All rows", *_overview(measured), ""]
    for name, row in measured.items():
        lines += [*_row(name, row, plots), ""]
    if absent := {name: row["unavailable"] for name, row in found["rows"].items() if "unavailable" in row}:
        lines += ["## Not measured", *(f"- {name}: {reason}" for name, reason in absent.items()), ""]
    if failed := {name: row["failed"] for name, row in found["rows"].items() if "failed" in row}:
        lines += ["## Failed", *(f"- {name}: {reason}" for name, reason in failed.items()), ""]
    files.write_text(page, "\n".join(lines).rstrip() + "\n")


def _machine(found: dict[str, Any]) -> Iterator[str]:
    machine = found["machine"]
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine["memory_bytes"] else ""
    yield f"Machine: {machine['processor']}, {machine['cores']} cores{memory}, {machine['system']}. " + (
        f"GPU: {', '.join(machine['gpus'])}." if machine["gpus"] else "**No GPU was at hand: nothing on this page was measured on one.**"
    )
    yield ""
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in {"mm3dad": found["mm3dad"], **found["versions"]}.items()) + "."


def _overview(rows: dict[str, Any]) -> Iterator[str]:
    yield "| row | mm3dad | peer | its time | ratio | to reach | reached |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        if "within_s" in row:
            limit = f"at most {_seconds(row['within_s'])}"
            yield f"| {name} | {_seconds(row['ours']['median_s'])} | | | | {limit} | {_word(row['met'])} |"
        for peer, side in row["peers"].items():
            reach = "" if side["reach"] is None else f"{side['reach']:g}"
            times = f"{_seconds(row['ours']['median_s'])} | {peer} | {_seconds(side['median_s'])} | {side['ratio']:.3g}"
            yield f"| {name} | {times} | {reach} | {_word(side['met'])} |"


def _row(name: str, row: dict[str, Any], plots: Path) -> Iterator[str]:
    yield f"## {name}"
    yield f"{row['work']}. Inputs: {row['inputs']}. {row['threads']} threads, commit {row['commit']}, {row['date']}{_load(row)}."
    yield ""
    yield "| side | time | runs | memory | ratio | differ (allowed) | source |"
    yield "|---|---|---|---|---|---|---|"
    yield f"| mm3dad | {_time(row['ours'])} | {row['ours']['runs']} | {_memory(row['ours'])} | | | |"
    for peer, side in row["peers"].items():
        differ = f"{side['difference']:.3g} ({side['tolerance']:g})" + ("" if side["same"] else " **no**")
        yield f"| {peer} | {_time(side)} | {side['runs']} | {_memory(side)} | {side['ratio']:.3g} | {differ} | {side['source']} |"
    for fact, value in row.get("facts", {}).items():
        yield f"\n- {fact}: {f'{value:.4g}' if isinstance(value, float) else value}"
    if "growth" in row:
        growth = row["growth"]
        file = plots / f"{name.replace(' ', '_').replace('(', '').replace(')', '')}.svg"
        curves = {side: curve["median_s"] for side, curve in growth["curves"].items()}
        files.write_text(file, draw_growth(growth["sizes"], curves, growth["unit"]))
        powers = ", ".join(f"{side} {curve['exponent']:.2f}" for side, curve in growth["curves"].items())
        yield f"\nTime grows as size to the power: {powers} (size = {growth['unit']})."
        yield f"\n![{name}: time over size]({plots.name}/{file.name})"


def _load(row: dict[str, Any]) -> str:
    return "" if row.get("load") is None else f", load of the machine at its start {row['load']:.1f}"


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.3g} s"
    return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} us"


def _time(side: dict[str, Any]) -> str:
    low, high = side["quartiles_s"]
    return f"{_seconds(side['median_s'])} ({_seconds(low)} to {_seconds(high)})"


def _memory(side: dict[str, Any]) -> str:
    return "" if side["peak_bytes"] is None else f"{side['peak_bytes'] / 2**20:.0f} MiB"


def _word(met: bool | None) -> str:
    return {None: "", True: "yes", False: "**no**"}[met]
