"""Predict for long and watch memory and handles: `python -m tests.long.soak --minutes 20 --out soak.json`."""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mm3dad
from mm3dad.files import write_json
from mm3dad.run.fit import fit_detector
from mm3dad.run.predict import predict_inputs
from tests.run.toy import register, write_tree

GROWTH = 32 << 20  # bytes that memory may grow over the last three quarters; allocators breathe


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def soak(method: str, minutes: float) -> dict[str, Any]:
    """Score a folder again and again; return resident bytes and open handles at a hundred moments, and the faults they show."""
    register()
    with tempfile.TemporaryDirectory() as folder:
        tree = write_tree(Path(folder) / "parts", ("nut",))
        fit_detector(method, "mvtec3d", tree, Path(folder) / "model")
        start, rounds, series = time.monotonic(), 0, []
        while (spent := time.monotonic() - start) < 60 * minutes or rounds < 8:
            found = predict_inputs(Path(folder) / "model", [tree / "nut" / "test"], Path(folder) / "out")
            assert len(found.rows) == 6 and not found.failures
            rounds += 1
            if spent >= 0.6 * minutes * len(series):
                gc.collect()
                series.append({"seconds": round(spent, 1), "bytes": _resident(), "handles": len(os.listdir("/proc/self/fd"))})
    settled = series[len(series) // 4 :]
    faults = []
    if (grown := settled[-1]["bytes"] - settled[0]["bytes"]) > GROWTH:
        faults.append(f"memory grew by {grown} bytes")
    if settled[-1]["handles"] > settled[0]["handles"]:
        faults.append(f"handles grew from {settled[0]['handles']} to {settled[-1]['handles']}")
    return {"method": method, "samples": 6 * rounds, "seconds": round(spent, 1), "series": series, "faults": faults}


def main() -> int:
    """Soak, keep a JSON, and fail if memory or handles grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--method", default="duet", help=f"toy, or one of {', '.join(mm3dad.list_methods())}")
    parser.add_argument("--out", type=Path, help="JSON of what was found")
    given = parser.parse_args()
    found = soak(given.method, given.minutes)
    first, last = found["series"][0], found["series"][-1]
    print(f"{found['samples']} samples, {first['bytes']} -> {last['bytes']} bytes, {first['handles']} -> {last['handles']} handles")
    print(*found["faults"], sep="\n")
    if given.out:
        write_json(given.out, found)
    return int(bool(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
