"""Prepare a dataset into a new folder: unpack, convert, remove the background; resumable, with a manifest."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mm3dad import __version__, files
from mm3dad.data import Dataset, Record
from mm3dad.data.archive import find_root, unpack
from mm3dad.data.clean import CleanConfig, clean_sample, find_plane_points
from mm3dad.data.writing import write_sample
from mm3dad.errors import ConfigError, DataError, nearest_name
from mm3dad.registry import DATASETS
from mm3dad.run._lock import held
from mm3dad.run._manifest import MANIFEST, check_apart, check_out, close_manifest, describe_inputs, is_current, note_sample, resume
from mm3dad.run._pool import Workers, check_workers, run_parallel
from mm3dad.run.progress import track, track_stages

GUARDS = ("max_removed",)  # parameters that decide whether to go on, not what is written
PROBES = 5  # training samples of a category that are looked at first
SPLITS = ("train", "validation", "test")
Source = tuple[str, str, str, str, tuple[tuple[str, Any], ...]]


def prepare_synthetic(
    out: str | Path,
    categories: Sequence[str] | None = None,
    seed: int = 0,
    size: int = 400,
    counts: dict[str, int] | None = None,
    workers: Workers = None,
) -> Path:
    """Write the synthetic data with progress, by processes of this machine; see `mm3dad.data.synthetic.write_dataset`."""
    from mm3dad.data.synthetic import write_dataset

    if isinstance(workers, str):
        raise ConfigError(f"prepare synthetic makes its data on this machine, got workers={workers!r}; give a number of processes")
    # Only a folder that holds a data set of ours, or the first breath of one, is swept; whose the others are, `write_dataset` looks at.
    begun = any(Path(out).glob(f".{MANIFEST}.*.part"))
    swept = ("**",) if (Path(out) / MANIFEST).is_file() else ("",) if begun else ()
    with held(out, *swept), track_stages("prepare synthetic") as progress:

        def report(done: int, total: int) -> None:
            progress("samples", done, total)

        return write_dataset(out, categories=categories, seed=seed, size=size, counts=counts, workers=workers, progress=report)


def prepare(
    name: str,
    root: str | Path | None,
    out: str | Path,
    *,
    archives: Sequence[str | Path] = (),
    categories: Sequence[str] | None = None,
    workers: Workers = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a cleaned copy of a dataset in MVTec 3D-AD's layout; the input is only read.

    mvtec3d and folder: background plane removed, padded, largest cluster kept (`CleanConfig`). eyecandies: depth
    turned into xyz in one of the published ways. A second call goes on where an interrupted one stopped.

    Args:
        name: "mvtec3d", "eyecandies" or "folder".
        root: the dataset; with `archives`, where to unpack them (by default `<out>-raw`).
        out: a new folder, or one that an earlier call with the same parameters left.
        archives: downloaded files, unpacked first.
        categories: all when None.
        workers: processes, all cores when None; "ray", "ray:N" or "ray:ADDRESS" for those of a cluster (docs/scale.md).
        options: fields of `CleanConfig`, and the dataset's own.

    Returns:
        {"out", "samples", "done", "resumed", "archives", "seconds"}.

    Raises:
        ConfigError: an unknown dataset or option, or no such cluster.
        DataError: bad input, a flat part, a folder of something else or of other parameters.
        StorageError: `out` cannot be written; what is finished stays.
    """
    start = time.monotonic()
    workers = check_workers(workers)
    if name not in ("mvtec3d", "eyecandies", "folder"):
        raise ConfigError(f"dataset {name!r} cannot be prepared; {nearest_name(name, ('mvtec3d', 'eyecandies', 'folder'))}")
    kind = DATASETS.get(name)
    reading, config = _split_options(name, kind.options, options)
    out = Path(out)
    if root is None and not archives:
        raise ConfigError("prepare needs the dataset's folder or an archive of it; give root or archives")
    root = Path(root) if root is not None else out.with_name(out.name + "-raw")
    check_apart(root, out)
    check_out(out)
    unpacked = [_unpack(Path(archive), root) for archive in archives]
    if root.is_dir() and (inner := find_root(root)) is not None:
        root = inner
        check_apart(root, out)
    names = list(categories) if categories is not None else kind.categories(root)
    splits: dict[tuple[str, str], Dataset] = {
        (category, split): kind(root, category, split, strict=split == "train", **reading) for category in names for split in SPLITS
    }
    if config is not None:
        _refuse_flat([splits[category, "train"] for category in names], config)
    parameters = {"dataset": name, **reading, **(dataclasses.asdict(config) if config else {})}
    jobs: dict[str, tuple[Source, Record]] = {}
    for (category, split), dataset in splits.items():
        source: Source = (name, str(root), category, split, tuple(reading.items()))
        jobs |= {f"{category}/{record.id}": (source, record) for record in dataset.records}
    header = {"mm3dad": __version__, "source": str(root.resolve()), "parameters": parameters}
    with held(out, "**"):
        done = resume(out, parameters, GUARDS)
        _refuse_removed(out, done, jobs, names)
        todo = {key: job for key, job in jobs.items() if not is_current(out, done.get(key), job[1])}
        # The manifest comes first: what is killed before it leaves nothing that a second call would take for foreign data.
        files.write_json(out / MANIFEST, {**header, "complete": False, "samples": done})
        for (category, split), dataset in splits.items():
            if split == "train" and dataset.intrinsics is not None:
                write_camera(out / category, dataset, config)
        _prepare_all(name, out, header, done, [(str(out), key, *job, config) for key, job in todo.items()], workers)
    seconds = round(time.monotonic() - start, 1)
    return {
        "out": str(out),
        "samples": len(jobs),
        "done": len(todo),
        "resumed": len(jobs) - len(todo),
        "archives": unpacked,
        "seconds": seconds,
    }


def _prepare_all(
    name: str, out: Path, header: dict[str, Any], done: dict[str, Any], calls: Sequence[tuple[Any, ...]], workers: Workers
) -> None:
    """Make the missing samples, then the manifest that says complete."""
    names = [call[1] for call in calls]
    for key, entry in track(run_parallel(_prepare_one, calls, workers, names=names, shared=out), f"prepare {name}", total=len(calls)):
        done[key] = entry
    close_manifest(out, header, done)


def _unpack(archive: Path, root: Path) -> dict[str, Any]:
    with held(root), track_stages(f"unpack {archive.name}") as progress:
        return unpack(archive, root, lambda done, total: progress("MiB", done >> 20, total >> 20))


def _split_options(name: str, own: Sequence[str], options: dict[str, Any]) -> tuple[dict[str, Any], CleanConfig | None]:
    """Part the options into those of reading and those of cleaning; Eyecandies has its own foreground rules."""
    fields = [] if name == "eyecandies" else [field.name for field in dataclasses.fields(CleanConfig)]
    for key in options:
        if key not in (*own, *fields):
            raise ConfigError(f"unknown option {key!r} of prepare {name}; {nearest_name(key, (*own, *fields))}")
    reading = {key: value for key, value in options.items() if key in own}
    if name == "eyecandies":
        return {"variant": "m3dm", **reading}, None
    return reading, CleanConfig(**{key: value for key, value in options.items() if key in fields})


def _refuse_flat(training: Sequence[Dataset], config: CleanConfig) -> None:
    """Look at a few samples of each category, so that a flat part is refused before hours are spent."""
    picked = [(dataset, index) for dataset in training for index in range(0, len(dataset), -(-len(dataset) // PROBES))]
    for dataset, index in track(picked, "look for the background"):
        find_plane_points(dataset[index], config)


def _refuse_removed(out: Path, done: dict[str, Any], jobs: dict[str, Any], categories: Sequence[str]) -> None:
    """Refuse to call a folder complete that holds samples which the input has no longer, or under another name."""
    gone = sorted(key for key in done if key.partition("/")[0] in categories and key not in jobs)
    if gone:
        raise DataError(f"{out} holds {len(gone)} samples that the input has no longer, e.g. {gone[0]}; prepare into a new folder")


def write_camera(folder: Path, dataset: Dataset, config: CleanConfig | None) -> None:
    """Write the camera of the padded images: the principal point moves with the padding."""
    assert dataset.intrinsics is not None
    height, width = dataset[0].size
    fx, fy, cx, cy = dataset.intrinsics
    if config is not None and config.multiple:
        side = -(-max(height, width) // config.multiple) * config.multiple
        cx, cy, height, width = cx + (side - width) // 2, cy + (side - height) // 2, side, side
    camera = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "width": width, "height": height}
    files.write_json(folder / "calibration" / "camera_parameters.json", camera)


@lru_cache(maxsize=4)
def _open_source(source: Source) -> Dataset:
    name, root, category, split, reading = source
    dataset: Dataset = DATASETS.get(name)(root, category, split, strict=False, **dict(reading))
    return dataset


def _prepare_one(out: str, key: str, source: Source, record: Record, config: CleanConfig | None) -> tuple[str, dict[str, Any]]:
    """Prepare and write one sample, then its line of the journal."""
    inputs = describe_inputs(record)
    sample = _open_source(source).read(record)
    measured = 0 if sample.valid is None else int(sample.valid.sum())
    if config is not None:
        sample = clean_sample(sample, config)
    category, _, rest = key.partition("/")
    folder, stem = Path(category) / Path(rest).parent, Path(rest).name
    outputs = {
        str(path): files.sha256_file(Path(out) / path) for path in write_sample(Path(out), folder, stem, sample, "gt" in record.paths)
    }
    kept = 0 if sample.valid is None else int(sample.valid.sum())
    entry = {"inputs": inputs, "outputs": outputs, "points": measured, "kept": kept}
    note_sample(Path(out), key, entry)
    return key, entry
