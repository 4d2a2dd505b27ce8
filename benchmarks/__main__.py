"""The benchmark: python -m benchmarks [--rows a,b] [--repeats 7] [--quick] [--out FOLDER].

Writes results.json after every row, and the page with its plots. Rows measured before stay in results.json until they are measured
again, each with the commit and the date of its own. Peers of the package index are the extra `bench`; a missing one is said, not guessed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import mm3dad
from benchmarks.harness import UnavailableError, list_rows, measure
from benchmarks.page import write_page
from mm3dad import files
from mm3dad.run._arguments import list_versions

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"


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
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch and of the kernels")
    parser.add_argument("--out", type=Path, help="folder for JSON, page and plots; default: benchmarks/ and docs/ (--quick needs a folder)")
    arguments = parser.parse_args()
    chosen = arguments.rows.split(",") if arguments.rows else list(rows)
    if unknown := [name for name in chosen if name not in rows]:
        parser.error(f"unknown rows {', '.join(unknown)}; there are: {', '.join(rows)}")
    if arguments.quick and arguments.out is None:
        parser.error("--quick needs --out FOLDER, so that its small inputs do not replace a measurement")
    torch.set_num_threads(arguments.threads)
    table = (arguments.out or HERE) / "results.json"
    page = arguments.out / "benchmarks.md" if arguments.out else PAGE
    found: dict[str, Any] = files.read_json(table) if table.exists() else {"rows": {}}
    found |= {"mm3dad": mm3dad.__version__, "machine": describe_machine(), "versions": list_versions()}
    for name in chosen:
        begin = time.perf_counter()
        try:
            row = measure(rows[name](arguments.quick), 2 if arguments.quick else arguments.repeats)
        except UnavailableError as error:
            row = {"unavailable": str(error)}
        row |= {"commit": describe_commit(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "threads": torch.get_num_threads()}
        found["rows"][name] = row
        found["rows"] = {key: found["rows"][key] for key in rows if key in found["rows"]}
        files.write_json(table, found)
        print(_line(name, row, time.perf_counter() - begin), flush=True)
    write_page(found, page)
    wrong = [f"{name} and {peer}" for name in chosen for peer, side in found["rows"][name].get("peers", {}).items() if not side["same"]]
    if wrong:
        sys.exit(f"results differ by more than their tolerance: {', '.join(wrong)}; see {table}")


def _line(name: str, row: dict[str, Any], spent: float) -> str:
    if "unavailable" in row:
        return f"{name}: not measured: {row['unavailable']}"
    peers = "; ".join(
        f"{peer} {side['median_s']:.4g} s = {side['ratio']:.1f} x" + ("" if side["same"] else f" DIFFERS by {side['difference']:.3g}")
        for peer, side in row["peers"].items()
    )
    return f"{name}: {row['ours']['median_s']:.4g} s; {peers} ({spent:.0f} s)"


if __name__ == "__main__":
    main()
