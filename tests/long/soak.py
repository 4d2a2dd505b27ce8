"""Watch a folder for long and look at memory and handles: `python -m tests.long.soak --minutes 20 --out soak.json`.

`mm3dad predict --watch` runs in a process of its own, as on a line; six parts at a time are put into its folder and taken out once they
are scored and drawn.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mm3dad
from mm3dad.files import write_json
from mm3dad.run.fit import fit_detector
from tests.run.toy import write_tree

GROWTH = 32 << 20  # bytes that memory may grow over the last three quarters; allocators breathe
MOMENTS = 100


def _look(process: int) -> dict[str, int]:
    resident = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    return {"bytes": resident, "handles": len(os.listdir(f"/proc/{process}/fd"))}


def _put(tree: Path, camera: Path, number: int) -> int:
    """Copy the test parts of a tree into the camera's folder under new names; return how many."""
    pictures = sorted((tree / "nut" / "test").glob("*/rgb/*.png"))
    for place, picture in enumerate(pictures):
        for role, path in (("rgb", picture), ("xyz", picture.parents[1] / "xyz" / f"{picture.stem}.tiff")):
            target = camera / role / f"{number + place:07d}{path.suffix}"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    return len(pictures)


def soak(method: str, minutes: float) -> dict[str, Any]:
    """Score parts as they come; return resident bytes and open handles at a hundred moments, and the faults they show."""
    with tempfile.TemporaryDirectory() as folder:
        tree, camera, out = write_tree(Path(folder) / "parts", ("nut",)), Path(folder) / "camera", Path(folder) / "out"
        fit_detector(method, "mvtec3d", tree, Path(folder) / "model")
        camera.mkdir()
        command = [sys.executable, "-m", "mm3dad", "predict", f"{folder}/model", "--watch", str(camera), "--out", str(out)]
        series: list[dict[str, float]] = []
        faults, scored, spent = [], 0, 0.0
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            start: float | None = None
            while spent < 60 * minutes or len(series) < 8:
                count = _put(tree, camera, scored)
                lines = [process.stdout.readline() for _ in range(count)]
                start = start or time.monotonic()  # not before the model is warm
                if bad := [line for line in lines if b'"error": null' not in line]:
                    faults.append(f"a part after {scored}: {bad[0].decode(errors='replace').strip() or 'the process ended'}")
                    break
                scored, spent = scored + count, time.monotonic() - start
                if spent >= 60 * minutes / MOMENTS * len(series):
                    series.append({"seconds": round(spent, 1), **_look(process.pid)})
                shutil.rmtree(camera / "rgb")
                shutil.rmtree(camera / "xyz")
                for picture in out.glob("heatmaps/**/*.png"):
                    picture.unlink()
            process.terminate()  # not Ctrl-C, which a shell lets what it started in the background ignore
    settled = series[len(series) // 4 :]
    if settled and (grown := settled[-1]["bytes"] - settled[0]["bytes"]) > GROWTH:
        faults.append(f"memory grew by {grown} bytes")
    if settled and settled[-1]["handles"] > settled[0]["handles"]:
        faults.append(f"handles grew from {settled[0]['handles']} to {settled[-1]['handles']}")
    return {"method": method, "samples": scored, "seconds": round(spent, 1), "series": series, "faults": faults}


def main() -> int:
    """Soak, keep a JSON, and fail if memory or handles grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--method", default="duet", choices=mm3dad.list_methods())
    parser.add_argument("--out", type=Path, help="JSON of what was found")
    given = parser.parse_args()
    found = soak(given.method, given.minutes)
    if found["series"]:
        first, last = found["series"][0], found["series"][-1]
        print(f"{found['samples']} samples, {first['bytes']} -> {last['bytes']} bytes, {first['handles']} -> {last['handles']} handles")
    print(*found["faults"], sep="\n")
    if given.out:
        write_json(given.out, found)
    return int(bool(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
