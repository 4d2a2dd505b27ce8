"""A bank larger than memory: what it takes to build and to search, and what its codes miss.

    python -m benchmarks.large_bank --rows 1000000 --source tire --folder DIR [--json FILE]
    python -m benchmarks.large_bank --rows 50000000 --source synthetic --folder DIR

`tire`: patches of the real tire training images at 448 px, turned and mirrored, on 128 random directions, against those of the test
images; recall and image AUROC beside exact search. `synthetic`: rows around prototypes, for time and memory alone. Each stage is a
process of its own, whose peak and growth of resident memory are the kernel's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mm3dad
from benchmarks.harness import read_status
from benchmarks.rows._tire import WIDTH, tire_folder, tire_patches
from mm3dad.files import read_json, write_json
from mm3dad.memory.compressed import CompressedRows, Layout, build
from mm3dad.metrics import auroc
from mm3dad.run.measure import peak_memory

BLOCK = 1 << 16  # rows of a block
QUERIES = 1000  # patches that recall is measured on


def make_synthetic(count: int, seed: int) -> Iterator[Tensor]:
    """Yield rows in blocks: near 4,096 prototypes, which lie in 32 of the directions, as features of like parts do."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(4096, 32, generator=generator) @ torch.randn(32, WIDTH, generator=generator) / 32**0.5
    generator.manual_seed(seed)
    for first in range(0, count, BLOCK):
        number = min(BLOCK, count - first)
        near = prototypes[torch.randint(len(prototypes), (number,), generator=generator)]
        yield near + 0.3 * torch.randn(number, WIDTH, generator=generator)


def make_tire(count: int) -> Iterator[Tensor]:
    """Yield the patches of the training images, turned and mirrored in eight ways, until there are enough."""
    left = count
    for turn in [(quarter, mirrored) for mirrored in (False, True) for quarter in range(4)]:
        for patches in tire_patches("train", turn):
            yield patches[:left]
            left -= len(patches[:left])
            if not left:
                return
    raise SystemExit(f"the tire images give {count - left:,} rows, not {count:,}")


def take_training(blocks: Iterator[Tensor], count: int, wanted: int) -> Tensor:
    """Return an even sample of the rows."""
    step = max(1, count // wanted)
    return torch.cat([block[::step] for block in blocks])[:wanted]


def build_stage(source: str, count: int, folder: Path, cells: int | None) -> dict[str, Any]:
    """Build the bank; the time of `build` holds the making of synthetic rows, which stream in."""
    layout = Layout.for_rows(count, WIDTH)
    layout = dataclasses.replace(layout, cells=cells or layout.cells)
    before = read_status("VmRSS")
    begin = time.perf_counter()
    if source == "tire":
        rows = torch.cat(list(make_tire(count)))
        made = time.perf_counter()
        build(folder, rows.split(BLOCK), take_training(iter(rows.split(BLOCK)), count, 64 * layout.cells), layout)
    else:
        training = torch.cat(list(make_synthetic(min(count, 64 * layout.cells), seed=1)))
        made = time.perf_counter()
        build(folder, make_synthetic(count, seed=2), training, layout)
    return {
        "cells": layout.cells,
        "code_bytes": layout.bytes,
        "making_rows_s": made - begin,
        "build_s": time.perf_counter() - made,
        "resident_before": before,
        "disk_bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


def drop_cache(folder: Path) -> None:
    """Let the system forget what it read of the bank, as it does when memory gets short."""
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def search_stage(source: str, folder: Path) -> dict[str, Any]:
    """Search the bank, and measure recall against all rows."""
    if source == "tire":
        images = list(tire_patches("test", (0, False)))
        queries = torch.cat(images)[:: max(1, sum(map(len, images)) // QUERIES)][:QUERIES]
    else:
        queries = next(make_synthetic(QUERIES, seed=3))
    drop_cache(folder)
    before = read_status("VmRSS")
    bank = CompressedRows(folder)
    begin = time.perf_counter()
    bank.nearest(queries, 3)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    bank.nearest(queries, 3)
    found = {
        "first_search_ms": first / len(queries) * 1e3,
        "search_ms": (time.perf_counter() - begin) / len(queries) * 1e3,
        "resident_growth": read_status("VmRSS") - before,
        "search_peak": peak_memory(),
        "recall_at_1": bank.measure_recall(queries),
    }
    if source == "tire":
        samples = mm3dad.open_dataset("mvtec3d", tire_folder(), "tire", "test")
        labels = torch.tensor([samples[i].label for i in range(len(samples))])
        for name, search in (("compressed", bank.nearest), ("exact", bank.nearest_exact)):
            scores = torch.tensor([float(search(patches, 1)[0].max()) for patches in images])
            found[f"image_auroc_{name}"] = float(auroc(scores, labels))
    return found


def run_stage(arguments: list[str]) -> dict[str, Any]:
    """Run one stage in a process of its own; add the peak of its memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stage.json"
        subprocess.run([sys.executable, "-m", "benchmarks.large_bank", *arguments, "--json", str(out)], check=True)
        return dict(read_json(out))


def main() -> None:
    """Run both stages and print what they measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--source", choices=("tire", "synthetic"), default="tire")
    parser.add_argument("--folder", type=Path, required=True, help="where the bank goes")
    parser.add_argument("--cells", type=int, help="coarse cells; as many as the number of rows asks for by default")
    parser.add_argument("--stage", choices=("build", "search"), help="one stage, in this process")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.stage is None:
        shared = ["--rows", str(given.rows), "--source", given.source, "--folder", str(given.folder)]
        shared += [*(["--cells", str(given.cells)] if given.cells else []), "--stage"]
        found = {"rows": given.rows, "source": given.source, **{stage: run_stage([*shared, stage]) for stage in ("build", "search")}}
    else:
        if given.stage == "build":
            stage = build_stage(given.source, given.rows, given.folder, given.cells)
        else:
            stage = search_stage(given.source, given.folder)
        found = {**stage, "peak": peak_memory(), "threads": torch.get_num_threads()}
    if given.json:
        write_json(given.json, found)
    if given.stage is None:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
