"""Peak memory of fitting: N images through the default features, each method in a process of its own.

    python benchmarks/memory.py --root data/synthetic --category cable [--methods patchcore,duet] [--images 300] [--json FILE]

The training samples of the tree come again under new names until there are N of them; they are read when they are asked for, as a data set
reads them. What counts is the peak of the whole process: libraries, network, bank and coreset.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mm3dad
from mm3dad.run.measure import peak_memory
from mm3dad.types import Sample

LIMIT = 2 * 2**30


class Repeated(Sequence[Sample]):
    """The samples of a data set, again and again, each time under a new name."""

    def __init__(self, samples: Sequence[Sample], count: int) -> None:
        self.samples, self.count = samples, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        sample = self.samples[index % len(self.samples)]
        return dataclasses.replace(sample, meta=dataclasses.replace(sample.meta, id=f"{sample.meta.id}/{index}"))


def measure(method: str, root: str, category: str, images: int, threads: int) -> dict[str, Any]:
    """Fit in this process and say what it took."""
    torch.set_num_threads(threads)
    samples = Repeated(mm3dad.open_dataset("mvtec3d", root, category, "train"), images)
    detector = mm3dad.create(method)
    before, start = peak_memory(), time.perf_counter()
    detector.fit(samples)
    return {
        "images": images,
        "sample_size": list(samples[0].size),
        "image_size": getattr(detector.config, "image_size", None),
        "fit_seconds": round(time.perf_counter() - start, 1),
        "peak_bytes_before": before,
        "peak_bytes": peak_memory(),
        "bank_bytes": detector.bank_bytes,
        "under_2_gib": peak_memory() < LIMIT,
    }


def main() -> None:
    """Print and keep what each method took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="a tree in the layout of MVTec 3D-AD, such as `mm3dad prepare synthetic` makes")
    parser.add_argument("--category", required=True)
    parser.add_argument("--methods", default="patchcore,duet")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="where the result goes")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"mm3dad": mm3dad.__version__, "torch": torch.__version__, "threads": arguments.threads, "methods": {}}
    for method in arguments.methods.split(","):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            task = (method, arguments.root, arguments.category, arguments.images, arguments.threads)
            result["methods"][method] = pool.apply(measure, task)
        print(json.dumps({method: result["methods"][method]}, indent=1), flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
