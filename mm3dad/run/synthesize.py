"""Write defects made on normal samples as a data set of its own, in MVTec 3D-AD's layout; resumable, with a manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mm3dad import __version__, files
from mm3dad.data import Dataset, Record
from mm3dad.data.writing import write_sample
from mm3dad.errors import DataError
from mm3dad.methods import resolve_config
from mm3dad.registry import DATASETS, SYNTHESIZERS
from mm3dad.run._lock import held
from mm3dad.run._manifest import MANIFEST, check_apart, check_out, close_manifest, describe_inputs, is_current, note_sample, resume
from mm3dad.run._pool import run_parallel
from mm3dad.run._splits import choose_categories
from mm3dad.run.learned import MODELS, learn_defects
from mm3dad.run.prepare import write_camera
from mm3dad.run.progress import track

Source = tuple[str, str, str, str, tuple[tuple[str, Any], ...]]  # dataset, root, category, split, its options


@dataclasses.dataclass(frozen=True)
class Job:
    """One file set to write: a normal sample as it is, or with a defect.

    Args:
        key: "<category>/<split>/<folder>/<number>".
        record: the normal sample.
        split: it comes from.
        other: where a synthesizer takes pieces from; None: write the sample as it is.
    """

    key: str
    record: Record
    split: str
    other: Record | None = None


def synthesize(
    name: str,
    dataset: str,
    root: str | Path,
    out: str | Path,
    *,
    categories: Sequence[str] | None = None,
    count: int = 20,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write a data set of synthetic defects: `train/good`, `test/good` and `test/<name>` with exact masks.

    Training samples go over as they are. Defects are made on the normal validation samples, which nothing is fitted on, and these make up
    `test/good`; without a validation split they are made on the training samples, and there is no `test/good`. A second call goes on
    where an interrupted one stopped, and writes the same files.

    Args:
        name: of a synthesizer.
        dataset, root: where normal samples come from; only read.
        out: a new folder, or one that an earlier call with the same arguments left.
        categories: all when None.
        count: defects per category.
        seed: of the defects; each has its own stream, so that neither `count` nor the number of workers changes them.
        options: of the synthesizer and of the dataset.
        workers: processes; when None all cores, and one for a synthesizer that learns.

    Returns:
        {"out", "categories", "folder", "samples", "done", "resumed", "seconds"}, and for a synthesizer that learns (`seas`)
        "learned_from": per category its model, weights, and the ids of the samples it was fitted on.

    Raises:
        ConfigError: an unknown name or option.
        DataError: bad input, no labelled defects for a synthesizer that learns, or a folder of something else or of other arguments.
        TrainingError: such a training diverged.
        StorageError: `out` cannot be written, or another process writes there; what is finished stays.
    """
    start = time.monotonic()
    kind, reader = SYNTHESIZERS.get(name), DATASETS.get(dataset)
    reading: dict[str, Any] = {key: value for key, value in (options or {}).items() if key in reader.options}
    config = resolve_config(kind.Config, {key: value for key, value in (options or {}).items() if key not in reading})
    root, out = Path(root), Path(out)
    names = choose_categories(dataset, root, categories)
    check_apart(root, out)
    check_out(out)
    parameters = {"synthesizer": name, **dataclasses.asdict(config), "dataset": dataset, **reading, "seed": seed}
    learned: dict[str, Any] = {}
    todo: list[tuple[Any, ...]] = []
    total = 0
    if kind.learns:
        reading["modalities"] = kind.inputs  # its pictures are new, and nothing measured points for them
    splits = {category: {split: reader(root, category, split, **reading) for split in ("train", "validation")} for category in names}
    with held(out, "**"):
        done = resume(out, parameters)
        for category, opened in splits.items():
            model = None
            if kind.learns:
                model = str(out / MODELS / category)
                labelled = {"train": opened["train"], "test": reader(root, category, "test", strict=False, **reading)}
                learned[category] = learn_defects(kind, config, labelled, Path(model))
            jobs = _plan(name, category, opened, count, seed)
            total += len(jobs)
            for job in jobs:
                source: Source = (dataset, str(root), category, job.split, tuple(reading.items()))
                if not is_current(out, done.get(job.key), job.record):
                    todo.append((str(out), job, source, name, config, seed, model))
        header = {"mm3dad": __version__, "source": str(root.resolve()), "parameters": parameters}
        if learned:
            header["learned_from"] = learned
        # The manifest comes before all that is not hidden: a second call takes the folder of one that was killed for its own.
        files.write_json(out / MANIFEST, {**header, "complete": False, "samples": done})
        for category, opened in splits.items():
            if opened["train"].intrinsics is not None:
                write_camera(out / category, opened["train"], None)
        if learned and workers is None:
            workers = 1  # each process would hold a diffusion model, which takes all cores by itself
        for key, entry in track(run_parallel(_write_one, todo, workers), f"synthesize {name}", total=len(todo)):
            done[key] = entry
        close_manifest(out, header, done)
    seconds = round(time.monotonic() - start, 1)
    counts = {"samples": total, "done": len(todo), "resumed": total - len(todo), "seconds": seconds}
    return {"out": str(out), "categories": names, "folder": f"test/{name}", **counts, **({"learned_from": learned} if learned else {})}


def _plan(name: str, category: str, opened: dict[str, Dataset], count: int, seed: int) -> list[Job]:
    """List what is to be written of one category."""
    train = opened["train"].records
    normal = [record for record in opened["validation"].records if record.label != 1]
    jobs = [Job(f"{category}/train/good/{number:03d}", record, "train") for number, record in enumerate(train)]
    jobs += [Job(f"{category}/test/good/{number:03d}", record, "validation") for number, record in enumerate(normal)]
    split, base = ("validation", normal) if normal else ("train", train)
    for number in range(count):
        record = base[number % len(base)]
        others = [other for other in base if other is not record] or base
        pick = int(torch.randint(len(others), (), generator=_stream(seed, category, name, "other", number)))
        jobs.append(Job(f"{category}/test/{name}/{number:03d}", record, split, others[pick]))
    return jobs


def _stream(seed: int, *key: object) -> torch.Generator:
    """Return a generator of its own for a key, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, (seed, *key))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@lru_cache(maxsize=4)
def _open_source(source: Source) -> Dataset:
    name, root, category, split, reading = source
    dataset: Dataset = DATASETS.get(name)(root, category, split, strict=False, **dict(reading))
    return dataset


@lru_cache(maxsize=1)
def _make_synthesizer(name: str, config: Any, model: str | None) -> Any:
    kind = SYNTHESIZERS.get(name)
    return kind(config) if model is None else kind.load(model)


def _write_one(out: str, job: Job, source: Source, name: str, config: Any, seed: int, model: str | None) -> tuple[str, dict[str, Any]]:
    """Write one sample, then its line of the journal."""
    dataset = _open_source(source)
    sample = dataset.read(job.record)
    if not sample.meta.organised:
        raise DataError(f"sample {sample.meta.id!r} is a cloud without a grid, which the layout cannot hold; use an organised cloud")
    if job.other is not None:
        sample = _make_synthesizer(name, config, model).make(sample, _stream(seed, job.key), dataset.read(job.other))
    folder, stem = Path(job.key).parent, Path(job.key).name
    written = write_sample(Path(out), folder, stem, sample, job.other is not None)
    outputs = {str(path): files.sha256_file(Path(out) / path) for path in written}
    entry = {"inputs": describe_inputs(job.record), "outputs": outputs}
    note_sample(Path(out), job.key, entry)
    return job.key, entry
