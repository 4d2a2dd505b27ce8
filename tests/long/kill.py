"""Kill the verbs at random moments: `python -m tests.long.kill --kills 50 --minutes 60 --out kill.json`.

Each verb runs undisturbed twice; then it is stopped by SIGKILL at a random moment of that time, called again, and what lies in its
folder must be the undisturbed result, byte for byte but for the fields that say when, where and how fast.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mm3dad.cli import main as call
from mm3dad.data.synthetic.write import CATEGORIES
from mm3dad.files import read_json, write_json
from mm3dad.run.evaluate import evaluate
from mm3dad.run.fit import fit_detector
from mm3dad.run.prepare import prepare, prepare_synthetic
from mm3dad.run.synthesize import synthesize
from tests.data.trees import write_tree as write_table
from tests.methods.parts import SHORT, SMALL
from tests.run.toy import register, write_tree

COUNTS = {"train": 1, "validation": 0, "good": 1, "defect": 0}
LEARNED = {
    "cfm": SMALL | {"epochs": 4},
    "glfm": {"centers": 16, "group_size": 16, "max_points": 600, "steps": 10, **SHORT["glfm"]},
    "das3d": {"side": 32, "width": 4, "levels": 2, "batch": 2, "epochs": 3},
}

LIBRARIES = ("open3d", "scipy.ndimage", "scipy.sparse", "timm")  # before the children part, so that a kill meets work, not imports
VOLATILE = {
    *("fit_seconds", "load_seconds", "read_ms", "predict_ms", "total_ms", "predict_ms_p50", "predict_ms_p95"),
    *("peak_rss_bytes", "folder", "command", "arguments"),
}
Verb = Callable[[Path], object]


def make_verbs(folder: Path, method: str, options: dict[str, Any]) -> dict[str, Verb]:
    """Write small inputs below `folder`; return the verbs, each a function of its output folder."""
    register()
    for library in LIBRARIES:
        importlib.import_module(library)
    parts, table = write_tree(folder / "parts"), write_table(folder / "table", ("a", "b"), 2, 1, 1, 1)
    nuts, model = write_tree(folder / "nuts", ("nut",)), folder / "model"
    fit_detector(method, "mvtec3d", nuts, model, options=options)

    def benchmark(out: Path) -> None:
        words = [str(model), str(nuts / "nut" / "test"), "--repeats", "12", "--json", str(out / "benchmark.json")]
        if call(["benchmark", *words]) != 0:
            raise RuntimeError("benchmark failed")

    return {
        "prepare synthetic": lambda out: prepare_synthetic(out, CATEGORIES[:2], size=64, counts=COUNTS, workers=1),
        "synthesize": lambda out: synthesize("dual", "mvtec3d", table, out, count=2, workers=1),
        "prepare": lambda out: prepare("mvtec3d", table, out, border=4, candidates=50, workers=1),
        "fit": lambda out: fit_detector(method, "mvtec3d", parts, out, options=options),
        "evaluate": lambda out: evaluate(method, "mvtec3d", parts, options=options, out=out),
        "benchmark": benchmark,
        **{f"train {name}": partial(_train, name, nuts) for name in LEARNED},
    }


def _train(method: str, tree: Path, out: Path) -> None:
    fit_detector(method, "mvtec3d", tree, out, options=LEARNED[method])


def _settled(value: Any, out: str) -> Any:
    if isinstance(value, dict):
        return {key: _settled(item, out) for key, item in sorted(value.items()) if key not in VOLATILE}
    if isinstance(value, list):
        return [_settled(item, out) for item in value]
    return value.replace(out, "") if isinstance(value, str) else value


def digest(out: Path) -> dict[str, str]:
    """Return file -> sha256 of everything below `out`; of JSON without the volatile fields, table.csv (made of evaluate.json) left out."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != "table.csv":
            data = path.read_bytes()
            if path.suffix == ".json":
                data = json.dumps(_settled(json.loads(data), str(out))).encode()
            found[str(path.relative_to(out))] = hashlib.sha256(data).hexdigest()
    return found


def _start(verb: Verb, out: Path) -> int:
    """Run the verb in a child that has the libraries already; return its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            verb(out)
            status = 0
        finally:
            os._exit(status)
    return child


def _finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_often(name: str, verb: Verb, folder: Path, kills: int, seed: int = 0, until: float = float("inf")) -> dict[str, Any]:
    """Kill and resume one verb; return how often it was killed and which results differed."""
    chance, start = random.Random(f"{seed}/{name}"), time.monotonic()
    for turn in ("whole", "again"):  # the first may still wait for the disk
        began = time.monotonic()
        if status := _finish(_start(verb, folder / f"{name}-{turn}")):
            return {"verb": name, "kills": 0, "faults": [f"the undisturbed call ended with {status}"], "seconds": 0.0}
        seconds = time.monotonic() - began
    expected = digest(folder / f"{name}-whole")
    faults = [] if digest(folder / f"{name}-again") == expected else ["two undisturbed calls differ"]
    done = hit = 0
    while done < kills and time.monotonic() < until:
        out, moment = folder / f"{name}-{done}", chance.uniform(0, seconds)
        child = _start(verb, out)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        hit += _finish(child) == -signal.SIGKILL
        if status := _finish(_start(verb, out)):
            faults.append(f"kill {done} after {moment:.3f} s: the second call ended with {status}")
        elif (got := digest(out)) != expected:
            differing = sorted(key for key in {*got, *expected} if got.get(key) != expected.get(key))
            faults.append(f"kill {done} after {moment:.3f} s: {', '.join(differing[:3])} differ")
        shutil.rmtree(out)
        done += 1
    return {"verb": name, "kills": done, "hit": hit, "faults": faults, "seconds": round(time.monotonic() - start, 1)}


def main() -> int:
    """Kill every verb, keep a JSON, and fail if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each verb")
    parser.add_argument("--minutes", type=float, default=600.0, help="of all verbs together, shared evenly")
    parser.add_argument("--verbs", help="some of them, with commas between; the rows of others that --out holds stay")
    parser.add_argument("--method", default="toy", help="what fit and evaluate run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="JSON of what was found")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if given.verbs and given.out and given.out.exists():
        rows = [row for row in read_json(given.out) if row["verb"] not in given.verbs.split(",")]
    faulty = False
    with tempfile.TemporaryDirectory() as folder:
        verbs = make_verbs(Path(folder), given.method, {})
        names = given.verbs.split(",") if given.verbs else list(verbs)
        end = time.monotonic() + 60 * given.minutes
        for position, name in enumerate(names):
            until = time.monotonic() + (end - time.monotonic()) / (len(names) - position)
            row = kill_often(name, verbs[name], Path(folder), given.kills, given.seed, until)
            print(json.dumps(row), flush=True)
            faulty |= bool(row["faults"])
            rows = sorted([*rows, row], key=lambda one: list(verbs).index(one["verb"]))
            if given.out:
                write_json(given.out, rows)
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())
