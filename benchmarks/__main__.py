"""The benchmark: python -m benchmarks [--rows a,b] [--repeats 7] [--threads 1,2] [--quick] [--out FOLDER].

Writes benchmarks.json and the page with its plots after every row. Rows measured before stay in the JSON until they are measured again,
each with the commit, the date and the load of the machine of its own. A row that fails is reported and does not stop the others. Peers
of the package index are the extra `bench`; a missing one is said, not guessed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import mm3dad
from benchmarks.harness import Row, UnavailableError, list_rows, measure
from benchmarks.page import write_page
from mm3dad import files
from mm3dad.run._arguments import list_versions

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory and system; nothing that names the machine."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        processor = next((line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line), processor)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": processor, "cores": os.cpu_count(), "memory_bytes": memory, "system": platform.system(), "gpus": gpus}


def describe_commit() -> str:
    """Return the short commit, with a plus where files differ from it."""

    def run(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    return run("rev-parse", "--short", "HEAD") + ("+" if run("status", "--porcelain", "-uno") else "")


def main() -> None:
    """Measure the rows asked for and write JSON and page."""
    rows = list_rows()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help=f"some of: {', '.join(rows)}")
    parser.add_argument("--repeats", type=int, default=7, help="samples of each side; slow peers run less often")
    parser.add_argument("--quick", action="store_true", help="small inputs and two samples: a test of the benchmark, not a measurement")
    parser.add_argument("--threads", default=str(os.cpu_count()), help="threads of torch and the kernels; 1,2: each row with both")
    parser.add_argument("--out", type=Path, help="folder for JSON, page and plots; default: docs/ (--quick needs a folder)")
    arguments = parser.parse_args()
    if not all(part.isdigit() and int(part) > 0 for part in arguments.threads.split(",")):
        parser.error(f"--threads takes numbers of at least 1, separated by commas, got {arguments.threads!r}")
    chosen = arguments.rows.split(",") if arguments.rows else list(rows)
    if unknown := [name for name in chosen if name not in rows]:
        parser.error(f"unknown rows {', '.join(unknown)}; there are: {', '.join(rows)}")
    if arguments.quick and arguments.out is None:
        parser.error("--quick needs --out FOLDER, so that its small inputs do not replace a measurement")
    folder = arguments.out or DOCS
    table, page = folder / "benchmarks.json", folder / "benchmarks.md"
    found: dict[str, Any] = files.read_json(table) if table.exists() else {"rows": {}}
    found |= {"mm3dad": mm3dad.__version__, "machine": describe_machine(), "versions": list_versions()}
    warn_of_load()
    counts = [int(part) for part in arguments.threads.split(",")]
    measured = []
    for name in chosen:
        for threads in counts:
            # The last number of threads is the row itself; the others stand beside it under names of their own.
            key = name if threads == counts[-1] else f"{name} ({threads} thread{'s' if threads > 1 else ''})"
            begin = time.perf_counter()
            torch.set_num_threads(threads)
            row = _try_row(rows[name], arguments.quick, 2 if arguments.quick else arguments.repeats)
            found["rows"][key] = row | {"commit": describe_commit(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "threads": threads}
            found["rows"] = dict(sorted(found["rows"].items(), key=lambda item: _place(item[0], list(rows))))
            files.write_json(table, found)
            print(_line(key, row, time.perf_counter() - begin), flush=True)
            write_page(found, page)
            measured.append(key)
    wrong = [f"{name} and {peer}" for name in measured for peer, side in found["rows"][name].get("peers", {}).items() if not side["same"]]
    if wrong:
        sys.exit(f"results differ by more than their tolerance: {', '.join(wrong)}; see {table}")
    if failed := [name for name in measured if "failed" in found["rows"][name]]:
        sys.exit(f"rows that failed: {', '.join(failed)}; see {table}")


def measure_load() -> float | None:
    """Return how many processes ran or waited over the last minute, or None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def warn_of_load() -> None:
    """Say on stderr when others use the machine: the figures then measure them too."""
    load, cores = measure_load(), os.cpu_count() or 1
    if load is not None and load > 0.5 * cores:
        print(f"warning: the load is {load:.1f} on {cores} cores; other work slows these rows, and one side more", file=sys.stderr)


def _try_row(make: Callable[[bool], Row], quick: bool, repeats: int) -> dict[str, Any]:
    """Measure one row; what goes wrong in it is its result."""
    load = measure_load()
    try:
        row = measure(make(quick), repeats)
    except UnavailableError as error:
        row = {"unavailable": str(error)}
    except Exception as error:
        traceback.print_exc()
        row = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    return row | {"load": load}


def _place(key: str, names: list[str]) -> tuple[int, str]:
    name = key.split(" (")[0]
    return (names.index(name) if name in names else len(names)), key


def _line(name: str, row: dict[str, Any], spent: float) -> str:
    if "unavailable" in row:
        return f"{name}: not measured: {row['unavailable']}"
    if "failed" in row:
        return f"{name}: FAILED: {row['failed']}"
    peers = "; ".join(
        f"{peer} {side['median_s']:.4g} s = {side['ratio']:.1f} x" + ("" if side["same"] else f" DIFFERS by {side['difference']:.3g}")
        for peer, side in row["peers"].items()
    )
    return f"{name}: {row['ours']['median_s']:.4g} s; {peers} ({spent:.0f} s)"


if __name__ == "__main__":
    main()
