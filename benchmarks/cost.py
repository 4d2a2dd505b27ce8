"""What one core needs for one part, one bank row and one code, and the driver for one file: the figures of the cost model in docs/scale.md.

    python -m benchmarks.cost --root data/synthetic [--category cookie] [--shots 10] [--parts 20] [--json FILE]

Seconds are processor seconds of one thread, which other work on the machine changes little; the bytes are counted, not estimated.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mm3dad
from benchmarks.__main__ import describe_commit, describe_machine
from mm3dad.data.single import find_record
from mm3dad.files import write_json, write_tensors
from mm3dad.memory.compressed import CompressedRows, Layout, build
from mm3dad.memory.search import nearest_rows
from mm3dad.run._request import check_request
from mm3dad.run.maps import make_maps

ROWS, WIDTH, QUERIES = 200_000, 128, 784
CELLS, CODE, PROBE = 32, 32, 9  # few cells with many codes, so that the codes are what takes time


def time_calls(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the least processor seconds of a call."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def measure_part(root: str, category: str, shots: int, parts: int, folder: Path) -> dict[str, Any]:
    """Fit `duet` and take the steps of `predict` one by one: reading, scoring, writing."""
    train, test = (mm3dad.open_dataset("synthetic", root, category, split) for split in ("train", "test"))
    detector = mm3dad.create("duet")
    start = time.process_time()
    detector.fit([train[number] for number in range(shots)])
    fit = time.process_time() - start
    detector.save(folder / "model")
    numbers = [round(number * (len(test) - 1) / max(1, parts - 1)) for number in range(parts)]
    spent = {"read": 0.0, "score": 0.0, "write": 0.0}
    for number in numbers:
        marks = [time.process_time()]
        sample = test[number]
        marks.append(time.process_time())
        prediction = detector.predict(sample)
        marks.append(time.process_time())
        write_tensors(folder / "map.safetensors", make_maps(prediction, sample.mask, sample.size))
        marks.append(time.process_time())
        for name, first, last in zip(spent, marks, marks[1:], strict=False):
            spent[name] += last - first
    sample = test[numbers[0]]
    return {
        "fit_s_per_sample": fit / shots,
        **{f"{name}_s": seconds / parts for name, seconds in spent.items()},
        "bank_bytes_per_sample": detector.bank_bytes / shots,
        "input_bytes": sum(Path(path).stat().st_size for role, path in sample.meta.paths.items() if role in ("rgb", "xyz")),
        "map_bytes": (folder / "map.safetensors").stat().st_size,
        "load_s": time_calls(lambda: mm3dad.load(str(folder / "model")), 2),
    }


def measure_bank(folder: Path) -> dict[str, Any]:
    """Search rows exactly and through codes; the rows are random, for time and bytes only."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, WIDTH, generator=generator).half()
    queries = torch.randn(QUERIES, WIDTH, generator=generator)
    exact = time_calls(lambda: nearest_rows(queries, rows, 1))
    start = time.process_time()
    build(folder / "bank", rows.float().split(50_000), rows[:8192].float(), Layout(CELLS, CODE, PROBE))
    made = time.process_time() - start
    bank = CompressedRows(folder / "bank")
    through = time_calls(lambda: bank.nearest(queries, 1))
    bank.index.nprobe = 1
    least = time_calls(lambda: bank.nearest(queries, 1))
    return {
        "exact_s_per_query_and_row": exact / QUERIES / ROWS,
        "codes_s_per_query_and_code": (through - least) / QUERIES / ((PROBE - 1) * ROWS / CELLS),
        "codes_s_per_query": least / QUERIES,
        "build_s_per_row": made / ROWS,
        "disk_bytes_per_row": sum(path.stat().st_size for path in (folder / "bank").iterdir()) / ROWS,
        "index_bytes_per_row": (folder / "bank" / "index.faiss").stat().st_size / ROWS,
    }


def measure_driver(root: str, category: str, folder: Path) -> dict[str, Any]:
    """Take what the driver does by itself before the first job: looking at every file, and finding an input among others."""
    found: dict[str, Any] = {}

    def look() -> None:
        request = check_request("btf", "synthetic", root, [category], [None], [0], {}, False, 224, "cpu")
        request.plan(folder)
        found["samples"] = sum(len(split) for split in request.splits[category].values())

    seconds = time_calls(look)
    for count in (1000, 10_000):
        place = folder / str(count) / "category" / "test" / "good" / "rgb"
        place.mkdir(parents=True)
        for number in range(count):
            (place / f"{number:06d}.png").touch()
        found[f"find_s_among_{count}"] = time_calls(lambda first=place / "000000.png": find_record(first))
    return {"look_s_per_sample": seconds / found.pop("samples"), **found}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="the synthetic data")
    parser.add_argument("--category", default="cookie")
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        part = measure_part(arguments.root, arguments.category, arguments.shots, arguments.parts, Path(folder))
        driver = measure_driver(arguments.root, arguments.category, Path(folder))
        found = {"part": part, "driver": driver, "bank": measure_bank(Path(folder))}
    found |= {"machine": describe_machine(), "commit": describe_commit()}
    if arguments.json is not None:
        write_json(arguments.json, found)
    for group in ("part", "driver", "bank"):
        for name, value in found[group].items():
            print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
