"""Measure one row: ours and its peers in turn, in one process, on the same inputs, with the check that both computed the same.

A file of `benchmarks/rows` holds `ROWS = {name: make}`; `make(quick)` returns a `Row`, builds its inputs only when it is called, and
raises `UnavailableError` where data or packages are missing. `quick` asks for inputs small enough to take seconds.
"""

from __future__ import annotations

import gc
import importlib
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mm3dad.ops.processor import return_memory

Run = Callable[[], Any]
SHORTEST = 0.02  # seconds a sample lasts at least: shorter calls are repeated and their mean is taken
PATIENCE = 30.0  # seconds spent on one side of a row, above which it runs less often than asked; a longer first run stays the only one


class UnavailableError(Exception):
    """The row cannot be measured here; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Peer:
    """What ours is measured against.

    Attributes:
        name: short, for tables.
        run: computes it once.
        source: where the code comes from: a package and its version, or "re-implemented from the sheet, ...".
        differ: (our result, its result) -> a number that is 0 where both agree.
        tolerance: largest such number that counts as the same.
        reach: ratio of medians (peer / ours) to reach, or None where there is no such figure.
    """

    name: str
    run: Run
    source: str
    differ: Callable[[Any, Any], float]
    tolerance: float = 0.0
    reach: float | None = None


@dataclass(frozen=True)
class Growth:
    """How cost grows: `make(side, size)` returns what to time; the sides are named, ours is "mm3dad"."""

    unit: str
    sizes: Sequence[int]
    make: Callable[[str, int], Run]
    sides: Sequence[str] = ("mm3dad",)


@dataclass(frozen=True)
class Row:
    """One line of the benchmark.

    Attributes:
        work: what is computed, one line.
        inputs: which inputs, one line.
        ours: computes it once.
        peers: what it is measured against.
        within: seconds the median of ours has to stay under, or None.
        facts: (our result, {peer: result}) -> further numbers worth a line, or None.
        growth: how cost grows with size, or None.
    """

    work: str
    inputs: str
    ours: Run
    peers: Sequence[Peer] = ()
    within: float | None = None
    facts: Callable[[Any, Mapping[str, Any]], dict[str, Any]] | None = None
    growth: Growth | None = None


@dataclass
class _Side:
    name: str
    run: Run
    result: Any = None
    first: float = 0.0
    peak: int | None = None
    seconds: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Run once, for the result, the memory and an idea of the time."""
        before = _reset_peak()
        begin = time.perf_counter()
        self.result = self.run()
        self.first = time.perf_counter() - begin
        self.peak = None if before is None else max(0, read_status("VmHWM") - before)

    def sample(self) -> None:
        inner = max(1, round(SHORTEST / max(self.first, 1e-7)))
        begin = time.perf_counter()
        for _ in range(inner):
            self.run()
        self.seconds.append((time.perf_counter() - begin) / inner)

    def summary(self) -> dict[str, Any]:
        low, middle, high = np.percentile(self.seconds, [25, 50, 75])
        spread = {"median_s": float(middle), "quartiles_s": [float(low), float(high)]}
        return {**spread, "runs": len(self.seconds), "peak_bytes": self.peak}


def list_rows() -> dict[str, Callable[[bool], Row]]:
    """Return every row's name and maker, in the order of the files."""
    rows: dict[str, Callable[[bool], Row]] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).with_name("rows"))]):
        if not module.name.startswith("_"):
            rows.update(importlib.import_module(f"benchmarks.rows.{module.name}").ROWS)
    return rows


def measure(row: Row, repeats: int) -> dict[str, Any]:
    """Measure a row: all sides take turns, `repeats` times, a slow one less often (twice at least where `repeats` allows).

    Returns:
        What the page shows, in plain values.
    """
    ours = _Side("mm3dad", row.ours)
    sides = [ours, *(_Side(peer.name, peer.run) for peer in row.peers)]
    for side in sides:
        side.start()
    times = {side.name: min(repeats, max(2, int(PATIENCE / max(side.first, 1e-7)))) for side in sides}
    for side in sides:
        if side.first > PATIENCE:
            side.seconds, times[side.name] = [side.first], 0
    for turn in range(repeats):
        for side in sides:
            if turn < times[side.name]:
                side.sample()
    found: dict[str, Any] = {"work": row.work, "inputs": row.inputs, "ours": ours.summary(), "peers": {}}
    if row.within is not None:
        found["within_s"] = row.within
        found["met"] = found["ours"]["median_s"] <= row.within
    for peer, side in zip(row.peers, sides[1:], strict=True):
        found["peers"][peer.name] = _compare(peer, side, ours)
    if row.facts is not None:
        found["facts"] = row.facts(ours.result, {side.name: side.result for side in sides[1:]})
    if row.growth is not None:
        found["growth"] = _measure_growth(row.growth, repeats)
    return found


def _compare(peer: Peer, side: _Side, ours: _Side) -> dict[str, Any]:
    own = side.summary()
    ratio = own["median_s"] / ours.summary()["median_s"]
    difference = float(peer.differ(ours.result, side.result))
    same = difference <= peer.tolerance
    met = None if peer.reach is None else ratio >= peer.reach and same
    return {
        **own,
        "source": peer.source,
        "ratio": ratio,
        "reach": peer.reach,
        "met": met,
        "difference": difference,
        "tolerance": peer.tolerance,
        "same": same,
    }


def _measure_growth(growth: Growth, repeats: int) -> dict[str, Any]:
    curves: dict[str, Any] = {}
    for name in growth.sides:
        medians = []
        for size in growth.sizes:
            side = _Side(name, growth.make(name, size))
            side.start()
            if side.first > PATIENCE / len(growth.sizes):
                side.seconds = [side.first]
            for _ in range(max(len(side.seconds) == 0, min(repeats, int(PATIENCE / len(growth.sizes) / max(side.first, 1e-7))))):
                side.sample()
            medians.append(side.summary()["median_s"])
        curves[name] = {"median_s": medians, "exponent": fit_exponent(growth.sizes, medians)}
    return {"unit": growth.unit, "sizes": list(growth.sizes), "curves": curves}


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of time over size in logarithms: 1 is linear, 2 quadratic."""
    return float(np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float)), 1)[0])


def read_status(key: str) -> int:
    """Return bytes from the kernel's account of this process, such as VmRSS; 0 where it has no such line."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return 0


def _reset_peak() -> int | None:
    """Give freed memory back, start the peak anew and return what is resident; None where the system cannot."""
    gc.collect()
    try:
        return_memory()
        Path("/proc/self/clear_refs").write_text("5")
        return read_status("VmRSS")
    except OSError:
        return None
