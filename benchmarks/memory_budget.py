"""Whether `memory_budget` holds: peak memory of fit, predict, evaluate and prepare, each in a process of its own.

    python -m benchmarks.memory_budget --root data/synthetic --category gasket [--images 100,300,1000,3000] [--budget 1]
        [--verbs fit,predict] [--real 300] [--coreset 0.05] [--json FILE]

The parts of a category come again under other names (links) until there are as many as asked for. Beyond `--real` of them the features
are those of the first ones with seeded noise, since computing them takes time and no further memory; all that keeps features stays.
What counts is the kernel's peak of the resident memory of the whole process, libraries included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import shutil
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mm3dad
from mm3dad import files
from mm3dad.features.branches import Patches, PointBranch, RGBBranch
from mm3dad.run.evaluate import evaluate
from mm3dad.run.fit import fit_detector
from mm3dad.run.measure import peak_memory
from mm3dad.run.predict import predict_inputs
from mm3dad.run.prepare import prepare
from mm3dad.types import Sample

TOLERANCE = 0.1
FEW = 40  # training parts where the test parts are the many
NOISE = 0.05  # of a channel's spread
VERBS = ("fit", "predict", "evaluate", "prepare")


def link_parts(source: Path, target: Path, split: str, count: int) -> None:
    """Fill <target>/<split> with links to the parts of <source>/<split>, kind by kind in turn, until there are `count`."""
    parts = sorted((source / split).glob("*/rgb/*"))
    kinds: dict[str, list[Path]] = {}
    for path in parts:
        kinds.setdefault(path.parts[-3], []).append(path)
    turns = [paths[turn] for turn in range(max(map(len, kinds.values()))) for paths in kinds.values() if turn < len(paths)]
    for number in range(count):
        path = turns[number % len(turns)]
        for file in path.parents[1].glob(f"*/{path.stem}.*"):
            link = target / split / path.parts[-3] / file.parent.name / f"{number:05d}{file.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                link.hardlink_to(file.resolve())  # a data set is not followed out of its folder, as symbolic links would lead
            except OSError:  # another file system
                shutil.copyfile(file, link)


def generate_after(kind: type[Any], real: int) -> None:
    """Let a branch compute the features of the first `real` samples and make those of the others from them."""
    compute, seen = kind.describe, []

    def describe(self: Any, samples: Sequence[Sample]) -> list[Patches]:
        found = []
        for sample in samples:
            if len(seen) < real:
                seen.append(compute(self, [sample])[0])
                found.append(seen[-1])
                continue
            seed = zlib.crc32(sample.meta.id.encode())
            one, generator = seen[seed % len(seen)], torch.Generator().manual_seed(seed)
            noise = torch.randn(one.features.shape, generator=generator) * one.features.std(0)
            found.append(dataclasses.replace(one, features=one.features + NOISE * noise))
        return found

    kind.describe = describe


def measure(verb: str, source: str, images: int, budget: float, generated: int | None, coreset: float) -> dict[str, Any]:
    """Do one thing in this process and say what it took."""
    if generated is not None:
        generate_after(RGBBranch, generated)
        generate_after(PointBranch, generated)
    options = {"memory_budget": budget, "coreset": coreset}
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "data", Path(folder) / "out"
        tree, part = root / Path(source).name, Path(source)
        many = "train" if verb in ("fit", "prepare") else "test"
        for split in ("train", "validation", "test"):
            link_parts(part, tree, split, images if split == many else FEW)
        start, result = time.perf_counter(), {}
        if verb == "prepare":
            prepare("mvtec3d", root, out, workers=1, max_removed=1.0)
        elif verb == "evaluate":
            result = {"bank_bytes": evaluate("duet", "mvtec3d", root, options=options, out=out)["runs"][0]["metrics"]["bank_bytes"]}
        else:
            result = {"bank_bytes": fit_detector("duet", "mvtec3d", root, out, options=options)[0]["bank_bytes"]}
            if verb == "predict":
                predict_inputs(out, [tree / "test"], Path(folder) / "predicted")
        peak = peak_memory()
        return {
            "verb": verb,
            "images": images,
            "budget_gib": budget,
            "generated": generated is not None,
            "seconds": round(time.perf_counter() - start, 1),
            "peak_bytes": peak,
            "share_of_budget": round(peak / (budget * 2**30), 3),
            "holds": peak <= (1 + TOLERANCE) * budget * 2**30,
            **result,
        }


def main() -> None:
    """Print and keep what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="a tree in the layout of MVTec 3D-AD, such as `mm3dad prepare synthetic` makes")
    parser.add_argument("--category", required=True)
    parser.add_argument("--images", default="100,300,1000,3000")
    parser.add_argument("--budget", type=float, default=1.0, help="GiB")
    parser.add_argument("--verbs", default=",".join(VERBS))
    parser.add_argument("--real", type=int, default=300, help="from how many images on features are generated")
    parser.add_argument("--coreset", type=float, default=0.05)
    parser.add_argument("--json", type=Path, help="keeps the rows; those of other calls that it holds stay")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = files.read_json(given.json)["rows"] if given.json and given.json.exists() else []
    for verb in given.verbs.split(","):
        for images in map(int, given.images.split(",")):
            generated = FEW if images > given.real and verb != "prepare" else None
            task = (verb, str(Path(given.root) / given.category), images, given.budget, generated, given.coreset)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = {**pool.apply(measure, task), "coreset": given.coreset, "mm3dad": mm3dad.__version__, "torch": torch.__version__}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if given.json:
                files.write_json(given.json, {"rows": rows})


if __name__ == "__main__":
    main()
