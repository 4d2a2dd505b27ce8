"""Measure what a person waits for, by the clock on the wall: the viewer, the report, a part on the line.

    python -m benchmarks.waits --root data/synthetic [--size 800] [--predictions 1000] [--json waits.json]

Each row is the median of its repeats with the least and the most, and the processor time beside it, which the other work of a busy machine
does not lengthen. The viewer shows a plate of `size` x `size` points (`benchmarks.viewer --frame`: until it is drawn); the report is of an
evaluation of one category whose rows are repeated, each with a file of maps of its own; the line scores synthetic parts with and without
`--watch`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm3dad import files
from mm3dad.data.single import list_inputs
from mm3dad.run import watch
from mm3dad.run.evaluate import evaluate
from mm3dad.run.fit import fit_detector
from mm3dad.view import write_report
from mm3dad.view.live import open_session
from mm3dad.view.why import draw_why
from tests.view.chromium import free_port
from tests.view.parts import make_sample, write_sample

CATEGORY = "cookie"
LIMITS = {"HTML file": 1500, "layer": 150, "click": 300, "report": 20_000, "watch adds": 10}  # ms, the figures of the issue
Times = list[tuple[float, float]]


def summarise(times: Times) -> dict[str, Any]:
    """Return median, least and most wall milliseconds, and the median of the processor's."""
    wall, cpu = np.array(times).T
    found = {"wall_ms": np.median(wall), "least_ms": wall.min(), "most_ms": wall.max(), "cpu_ms": np.median(cpu)}
    return {name: round(float(value), 1) for name, value in found.items()} | {"repeats": len(times)}


def clock(act: Callable[[], object]) -> tuple[float, float]:
    """Return wall and processor milliseconds of an action in this process."""
    start, spent = time.perf_counter(), time.process_time()
    act()
    return 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - spent)


def clock_command(words: Iterable[str], line: str | None = None) -> tuple[float, float]:
    """Return wall and processor milliseconds of `mm3dad` from its start to its end, or until it prints a line with these words."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "mm3dad", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = next((text for text in process.stdout if line is not None and line in text), None)
    wall = time.perf_counter() - start
    assert (told is None) == (line is None), "the command ended before it said so"
    if line is not None:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        process.terminate()
        process.communicate()
        return 1000 * wall, 1000 * cpu
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return 1000 * (time.perf_counter() - start), 1000 * (used.ru_utime + used.ru_stime)


def measure_viewer(folder: Path, size: int, repeats: int) -> dict[str, Any]:
    """Measure until there is something to open, and in a session each layer and a click on the three highest places."""
    for number, defect in enumerate(("dent", "good", "good")):
        write_sample(folder / "data", make_sample(size, defect, f"{'train' if number else 'test'}/{defect}/{number:03d}", number))
    model = folder / "plate"
    fit_detector("duet", "folder", folder / "data", model, categories=["plate"])
    sample = str(folder / "data/plate/test/dent/xyz/000.tiff")
    serve, page = ["view", sample, "--serve", "--port", str(free_port())], ["view", sample, "--html", str(folder / "a.html")]
    found = {
        "address of the browser view": [clock_command(serve, "open http") for _ in range(repeats)],
        "address of the browser view, with a model": [clock_command([*serve, "--model", str(model)], "open http") for _ in range(repeats)],
        "HTML file": [clock_command(page) for _ in range(repeats)],
        "scored and explained HTML file": [clock_command([*page, "--model", str(model)]) for _ in range(min(3, repeats))],
    }
    session = open_session(sample, model=model)
    (side,) = session.open()
    for layer in session.layer_names:
        session.layer = layer
        session.colors(side)  # computed in the background once a sample is open
        found[f"layer {layer}"] = [clock(lambda: session.colors(side)) for _ in range(repeats)]

    def explain(point: int) -> None:
        session.pick(tuple(side.points[point] + np.array([0, 0, 3.0])), (0.0, 0.0, -1.0))
        draw_why(session.choose(0, point).why)
        session.colors(side)

    places = [int(np.abs(side.pixel - (why.row * size + why.column)).argmin()) for why in side.entry.explain_peaks()]
    found["click"] = [clock(lambda point=point: explain(point)) for _ in range(repeats) for point in places]
    return {name: summarise(times) for name, times in found.items()}


def measure_report(folder: Path, root: Path, count: int, repeats: int) -> dict[str, Any]:
    """Measure the report of `count` predictions: `mm3dad report` from its start to its end, and the bytes of the page."""
    out = folder / "evaluation"
    evaluate("duet", "synthetic", root, categories=[CATEGORY], shots=[8], out=out)
    (path,) = out.glob("runs/*/run.json")
    run = files.read_json(path)
    rows = run["samples"]
    for number in range(len(rows), count):
        row = dict(rows[number % len(rows)], id=f"{rows[number % len(rows)]['id']}-{number}", file=f"maps/{number}.safetensors")
        shutil.copyfile(path.parent / rows[number % len(rows)]["file"], path.parent / row["file"])
        rows.append(row)
    files.write_json(path, run)
    times = [clock_command(["report", str(out)]) for _ in range(repeats)]
    size = write_report(out).stat().st_size
    shutil.rmtree(out)
    return {f"report of {count} predictions": summarise(times) | {"megabytes": round(size / 1e6, 2)}}


def measure_watch(folder: Path, root: Path, repeats: int) -> dict[str, Any]:
    """Measure what `--watch` takes for each part besides reading and predicting it, warm, files complete."""
    model, camera = folder / "model", folder / "camera"
    fit_detector("duet", "synthetic", root, model, categories=[CATEGORY], shots=8)
    paths = list_inputs(root / CATEGORY / "test")[:24]
    for path in paths:
        for role in ("rgb", "xyz"):
            (source,) = (path.parent.parent / role).glob(f"{path.stem}.*")
            target = camera / path.parent.parent.name / role / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def run(number: int) -> tuple[Any, Any]:
        """Return the milliseconds a part took to be read and predicted, and those beyond; the warm-up and the waiting are left out."""
        inside: Times = []
        moments: Times = []
        rows: list[dict[str, Any]] = []

        def timed(act: Callable[..., Any], *words: Any, **named: Any) -> Any:
            found: list[Any] = []
            inside.append(clock(lambda: found.append(act(*words, **named))))
            return found[0]

        def stop() -> bool:
            moments.append((1000 * time.perf_counter(), 1000 * time.process_time()))
            return len(rows) == len(paths)

        with pytest.MonkeyPatch.context() as patch:
            for name in ("read_sample", "score_one"):
                patch.setattr(watch, name, partial(timed, getattr(watch, name)))
            lines = folder / f"{number}.jsonl"
            watch.watch_folder(model, camera, json=lines, on_line=lambda row, *_: rows.append(row), on_ready=stop, stop=stop, settle=0)
        assert all(row["error"] is None for row in rows)
        whole, spent = np.subtract(moments[-1], moments[0]), np.sum(inside, axis=0)
        return spent / len(paths), (whole - spent) / len(paths)

    plain, added = zip(*map(run, range(repeats)), strict=True)
    return {"read and predict": summarise(list(plain)), "watch adds": summarise(list(added))}


def main() -> None:
    """Measure, print, and say what misses its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="synthetic data; `mm3dad prepare synthetic` makes them")
    parser.add_argument("--size", type=int, default=800, help="height and width of the sample in the viewer")
    parser.add_argument("--predictions", type=int, default=1000, help="in the report")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("viewer", "report", "watch"), help="measure this alone")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work: dict[str, Callable[[Path], dict[str, Any]]] = {
        "viewer": lambda folder: measure_viewer(folder, arguments.size, arguments.repeats),
        "report": lambda folder: measure_report(folder, arguments.root, arguments.predictions, arguments.repeats),
        "watch": lambda folder: measure_watch(folder, arguments.root, arguments.repeats),
    }
    found: dict[str, Any] = {}
    for name, measure in work.items():
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                found |= measure(Path(folder))
    for name, row in found.items():
        limit = next((value for start, value in LIMITS.items() if name.startswith(start)), None)
        row["limit_ms"] = limit
        print(f"{name}: {row['wall_ms']} ms ({row['least_ms']} to {row['most_ms']}), processor {row['cpu_ms']} ms", end="")
        print("" if limit is None else f", limit {limit} ms{'' if row['wall_ms'] < limit else ': MISSED'}", end="")
        print(f", {row['megabytes']} MB" if "megabytes" in row else "")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"load of the machine at the end: {load} on {os.cpu_count()} cores")
    if arguments.json is not None:
        files.write_text(arguments.json, json.dumps(found | {"load": os.getloadavg()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
