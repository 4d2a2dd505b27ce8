"""Speed-up of an evaluation by Ray workers of one thread each, beside one such worker and beside this process.

    python -m benchmarks.scale --root data/synthetic [--method duet] [--categories a,b] [--shots 10] [--seeds 0] [--repeats 3] [--json FILE]

The sides take turns, each in folders of its own; what counts is the wall time of the whole call, start of the cluster and of its workers
included. The start alone is measured too, as the time of one empty job. The files of all sides must be the same. Each side has as many
cores as workers, for driver and Ray's own processes too: a worker reads the next sample in a second thread, which would take an idle core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import describe_commit, describe_machine, measure_load, warn_of_load
from mm3dad.files import write_json
from mm3dad.run._pool import run_parallel
from mm3dad.run.evaluate import evaluate
from tests.long.kill import digest

SIDES = {"1 worker": "ray:1", "2 workers": "ray:2", "this process": 1}
CORES = {"1 worker": 1, "2 workers": 2, "this process": 1}


def compare(out: Path) -> dict[str, str]:
    """Return the digest of an evaluation's files, without where it was computed."""
    content = json.loads((out / "evaluate.json").read_text())
    content.pop("machine")
    write_json(out / "evaluate.json", content)
    return digest(out)


@contextlib.contextmanager
def tied(cores: int) -> Iterator[None]:
    """Let this process, and what it starts, run on so many cores while the block runs."""
    before = os.sched_getaffinity(0)
    if len(before) < cores:
        raise SystemExit(f"{cores} cores are needed, this process may use {len(before)}")
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def nothing() -> None:
    """Be the empty job."""


def time_start(workers: str) -> float:
    """Return the seconds until a cluster has started and one worker has answered."""
    start = time.perf_counter()
    list(run_parallel(nothing, [()], workers))
    return time.perf_counter() - start


def run_side(workers: Any, arguments: argparse.Namespace, out: Path) -> tuple[float, float]:
    """Evaluate into a new folder; return the seconds of the call, and the mean per unit that its workers count."""
    start = time.perf_counter()
    result = evaluate(
        arguments.method,
        "synthetic",
        arguments.root,
        categories=arguments.categories.split(",") if arguments.categories else None,
        shots=[arguments.shots],
        seeds=[int(seed) for seed in arguments.seeds.split(",")],
        out=out,
        workers=workers,
    )
    seconds = time.perf_counter() - start
    metrics = [run["metrics"] for run in result["runs"]]
    return seconds, statistics.mean(m["fit_seconds"] + m["predict_ms_p50"] * m["samples"] / 1000 for m in metrics)


def main() -> None:
    """Measure, compare and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="the synthetic data")
    parser.add_argument("--method", default="duet")
    parser.add_argument("--categories", help="some of the tree; all by default")
    parser.add_argument("--shots", type=int, help="good parts to fit on; all by default")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without", help="a side to leave out, such as 'this process'")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    warn_of_load()
    sides = {name: workers for name, workers in SIDES.items() if name != arguments.without}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    counted: dict[str, list[float]] = {name: [] for name in sides}
    loads, files, starts = [], [], {}
    for name, workers in sides.items():
        if isinstance(workers, str):
            with tied(CORES[name]):
                starts[name] = time_start(workers)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.repeats):
            for name, workers in sides.items():
                out = Path(folder) / f"{number}-{workers}"
                loads.append(measure_load())
                with tied(CORES[name]):
                    spent, own = run_side(workers, arguments, out)
                seconds[name].append(spent)
                counted[name].append(own)
                files.append(compare(out))
                print(f"{name}: {spent:.1f} s, {own:.2f} s counted per unit", flush=True)
    # Turn by turn: machines change their speed from one turn to the next.
    turns = [one / two for one, two in zip(seconds["1 worker"], seconds["2 workers"], strict=True)]
    speed_up = statistics.median(turns)
    same = all(found == files[0] for found in files)
    found = {
        "speed_up": speed_up,
        "efficiency": speed_up / 2,
        "speed_up_of_turns": turns,
        "same_files": same,
        "seconds": seconds,
        "start_s": starts,
        "counted_per_unit_s": counted,
        "arguments": {name: value for name, value in vars(arguments).items() if name not in ("json", "root")},
        "cores": {name: CORES[name] for name in sides},
        "load": loads,
        "machine": describe_machine(),
        "commit": describe_commit(),
    }
    if arguments.json is not None:
        write_json(arguments.json, found)
    print(f"speed-up {speed_up:.2f} ({min(turns):.2f} to {max(turns):.2f}), efficiency {speed_up / 2:.0%}; same files: {same}")
    if not same:
        raise SystemExit("results differ between the sides")


if __name__ == "__main__":
    main()
