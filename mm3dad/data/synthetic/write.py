"""Write the synthetic data set to disk in the raw layout of MVTec 3D-AD."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

from mm3dad.data.synthetic.defects import VARIANTS
from mm3dad.data.synthetic.parts import PARTS
from mm3dad.data.synthetic.render import BASELINE, FOCAL
from mm3dad.data.synthetic.scene import make_scan
from mm3dad.errors import ConfigError, DataError, nearest_name
from mm3dad.files import read_json, write_json, write_with

VERSION = 1  # raised whenever the same seed gives other samples
CATEGORIES = tuple(sorted(PARTS))
DEFECTS = tuple(sorted(VARIANTS))
COUNTS = {"train": 40, "validation": 8, "good": 20, "defect": 4}

_Job = tuple[str, str, str, int]


def write_dataset(
    out: str | Path,
    categories: Sequence[str] | None = None,
    seed: int = 0,
    size: int = 400,
    counts: Mapping[str, int] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Write the synthetic data set; a folder that an interrupted call left is completed.

    Every sample depends on (seed, category, split, defect, index) alone: neither the order nor the number of workers
    nor the counts change it. `manifest.json` lists each sample with what the defect changed.

    Args:
        out: folder of the tree, new or written by this function with the same seed and size.
        categories: subset of CATEGORIES; all when None.
        seed: of the whole tree, >= 0.
        size: H = W in pixels, 64 to 2048 and a multiple of 4; 400 and 800 are the usual ones.
        counts: samples per category, any of "train", "validation", "good" (test), "defect" (test, of each kind).
        workers: processes; None takes all cores that this process may use.
        progress: called as progress(done, total) after each sample.

    Returns:
        The folder.

    Raises:
        ConfigError: an unknown category or count, or a number out of range.
        DataError: the folder holds something else.
        StorageError: a file could not be written; what is complete stays and a second call goes on from there.
    """
    categories, sizes = _check(categories, seed, size, counts, workers)
    out = Path(out)
    header = {"generator": "mm3dad.synthetic", "version": VERSION, "seed": seed, "size": size}
    entries = _read_entries(out, header)
    jobs = [job for category in categories for job in _list_jobs(category, sizes)]
    todo = [job for job in jobs if not (_id(job) in entries and all(path.is_file() for path in _paths(out, job).values()))]

    def save() -> None:
        write_json(out / "manifest.json", {**header, "samples": [entries[key] for key in sorted(entries)]})

    save()
    for category in categories:
        write_json(out / category / "calibration" / "camera_parameters.json", _describe_camera(size))
    done, saved = len(jobs) - len(todo), time.monotonic()
    if progress:
        progress(done, len(jobs))
    try:
        for entry in _run(out, todo, seed, size, workers):
            entries[entry["id"]] = entry
            done += 1
            if progress:
                progress(done, len(jobs))
            if time.monotonic() - saved > 3:
                save()
                saved = time.monotonic()
    finally:
        save()
    return out


def _check(
    categories: Sequence[str] | None, seed: int, size: int, counts: Mapping[str, int] | None, workers: int | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    chosen = CATEGORIES if categories is None else tuple(dict.fromkeys(categories))
    if isinstance(categories, str) or not chosen:
        raise ConfigError(f"categories must be a list of names, got {categories!r}; known: {', '.join(CATEGORIES)}")
    for name in chosen:
        if name not in CATEGORIES:
            raise ConfigError(f"unknown category {name!r}; {nearest_name(name, CATEGORIES)}")
    for name in counts or {}:
        if name not in COUNTS:
            raise ConfigError(f"unknown count {name!r}; {nearest_name(name, COUNTS)}")
    for name, value, low, high in [("seed", seed, 0, 2**32 - 1), ("size", size, 64, 2048), ("workers", workers, 1, 1024)] + [
        (f"counts[{name!r}]", value, 0, 1000) for name, value in (counts or {}).items()
    ]:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
            raise ConfigError(f"{name} must be a whole number from {low} to {high}, got {value!r}; choose another")
    if size % 4:
        raise ConfigError(f"size must be a multiple of 4, got {size}; use {size - size % 4}")
    return chosen, {**COUNTS, **(counts or {})}


def _list_jobs(category: str, sizes: Mapping[str, int]) -> list[_Job]:
    jobs = [
        (category, split, "good", i)
        for split, name in (("train", "train"), ("validation", "validation"), ("test", "good"))
        for i in range(sizes[name])
    ]
    return jobs + [(category, "test", defect, i) for defect in DEFECTS for i in range(sizes["defect"])]


def _id(job: _Job) -> str:
    category, split, defect, index = job
    return f"{category}/{split}/{defect}/{index:03d}"


def _paths(out: Path, job: _Job) -> dict[str, Path]:
    category, split, defect, index = job
    folder = out / category / split / defect
    paths = {"rgb": folder / "rgb" / f"{index:03d}.png", "xyz": folder / "xyz" / f"{index:03d}.tiff"}
    return {**paths, "gt": folder / "gt" / f"{index:03d}.png"} if split == "test" else paths


def _describe_camera(size: int) -> dict[str, Any]:
    return {
        "width": size,
        "height": size,
        "fx": FOCAL * size,
        "fy": FOCAL * size,
        "cx": (size - 1) / 2,
        "cy": (size - 1) / 2,
        "unit": "metre",
        "projector_baseline": BASELINE / 1000,
    }


def _read_entries(out: Path, header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    path = out / "manifest.json"
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(not entry.name.startswith(".") for entry in out.iterdir())):
            raise DataError(f"{out} exists and is not synthetic data (no manifest.json); choose a new folder")
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or any(found.get(name) != value for name, value in header.items()):
        got = {name: found.get(name) for name in header} if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{out} was written with {got}, this call asks for {dict(header)}; choose a new folder")
    samples = found.get("samples")
    if not isinstance(samples, list) or not all(isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in samples):
        raise DataError(f"{path} must list its samples as objects with an id, it does not; delete the folder and write it again")
    return {entry["id"]: entry for entry in samples}


def _write_sample(out: Path, job: _Job, seed: int, size: int) -> dict[str, Any]:
    import numpy as np
    import tifffile
    from PIL import Image

    category, split, defect, index = job
    scan = make_scan(category, split, defect, index, seed, size)
    paths = _paths(out, job)
    if "gt" in paths:
        mask = Image.fromarray(scan.mask.astype(np.uint8) * 255)
        write_with(paths["gt"], lambda path: mask.save(path, format="PNG"))
    write_with(paths["xyz"], lambda path: tifffile.imwrite(path, scan.xyz, photometric="rgb", metadata=None, software=False))
    write_with(paths["rgb"], lambda path: Image.fromarray(scan.rgb).save(path, format="PNG", compress_type=zlib.Z_RLE))
    return {"id": _id(job), "category": category, "split": split, "defect": defect, **scan.truth}


def _run(out: Path, jobs: list[_Job], seed: int, size: int, workers: int | None) -> Iterator[dict[str, Any]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, len(jobs))
    if workers <= 1:
        for job in jobs:
            yield _write_sample(out, job, seed, size)
        return
    # fork starts at once and needs no importable __main__; elsewhere the platform's safe way is used
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        queue = iter(jobs)
        pending: set[Future[dict[str, Any]]] = {pool.submit(_write_sample, out, job, seed, size) for job in islice(queue, 2 * workers)}
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                    pending |= {pool.submit(_write_sample, out, job, seed, size) for job in islice(queue, 1)}
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
