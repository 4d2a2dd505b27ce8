"""Fit a detector on a dataset tree and save it; the choice of shots, seeds and devices lives here."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mm3dad import __version__, files
from mm3dad.data import Dataset, Record
from mm3dad.errors import ConfigError
from mm3dad.nets.training import remove_checkpoints
from mm3dad.run._arguments import list_versions, make_detector, require_writable, split_options
from mm3dad.run._lock import held
from mm3dad.run._splits import choose_categories, open_splits
from mm3dad.run.auxiliary import check_use, describe_auxiliary, is_auxiliary, open_auxiliary, uses_normals
from mm3dad.run.progress import track_stages
from mm3dad.run.track import require_tracker
from mm3dad.run.training import CHECKPOINTS, describe_training, open_training
from mm3dad.types import Sample, SampleSequence

if TYPE_CHECKING:
    from mm3dad.methods import Detector


class Selection(SampleSequence):
    """Chosen records of one or several datasets as one sequence, read on access.

    With several datasets the category goes before the id, so that ids stay unique.
    """

    def __init__(self, parts: Sequence[tuple[Dataset, Sequence[Record]]]) -> None:
        self._prefix = len(parts) > 1
        self._items = [(dataset, record) for dataset, records in parts for record in records]

    @property
    def ids(self) -> list[str]:
        """The samples' ids, in order."""
        return [f"{record.category}/{record.id}" if self._prefix else record.id for _, record in self._items]

    def __len__(self) -> int:
        return len(self._items)

    def _read_at(self, position: int) -> Sample:
        dataset, record = self._items[position]
        sample = dataset.read(record)
        if self._prefix:
            sample.meta = dataclasses.replace(sample.meta, id=f"{record.category}/{record.id}")
        return sample


def choose_shots(records: Sequence[Record], shots: int | None, seed: int) -> list[Record]:
    """Choose K normal samples, the same on every machine and for every version of every library.

    The records are ordered by sha256("<seed>/<id>"), a seeded permutation that no random number generator
    can change; the first K are taken. A larger K therefore contains the smaller one.

    Args:
        records: what there is to choose from.
        shots: K >= 1, or None for all.
        seed: another seed, another choice.

    Returns:
        The chosen records, sorted by id.

    Raises:
        ConfigError: K < 1, or more than there are.
    """
    if shots is None:
        return sorted(records, key=lambda record: record.id)
    if not 1 <= shots <= len(records):
        raise ConfigError(f"shots must be between 1 and the {len(records)} training samples there are, got {shots}; lower --shots")
    order = sorted(records, key=lambda record: hashlib.sha256(f"{seed}/{record.id}".encode()).digest())
    return sorted(order[:shots], key=lambda record: record.id)


def fingerprint(datasets: Sequence[Dataset]) -> str:
    """Return a sha256 over ids, sizes and times of all files, which changes when the data do."""
    digest = hashlib.sha256()
    for dataset in datasets:
        for record in dataset.records:
            for role, path in sorted(record.paths.items()):
                state = Path(path).stat()
                digest.update(f"{record.category}/{record.id}:{role}:{state.st_size}:{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def fit_on(
    detector: Detector,
    splits: Sequence[dict[str, Dataset]],
    shots: int | None,
    seed: int,
    title: str,
    auxiliary: Sequence[Dataset] = (),
    folder: Path | None = None,
    tracker: str | None = None,
) -> tuple[list[str], float]:
    """Fit on one category, or on several joined; validation samples may set the threshold.

    Args:
        detector: unfitted.
        splits: per category, its "train" and "validation" datasets.
        shots: K normal samples of each category, None for all.
        seed: of the choice, and of torch's generator.
        title: what the progress says.
        auxiliary: labelled sets of other products; where they are given, all their samples are what is fitted on, with the chosen normal
            samples of the categories behind them for a method that uses both.
        folder: where a method that trains keeps checkpoints, from which a later call goes on; None keeps none.
        tracker: where its curves go, tensorboard, wandb or mlflow; None keeps none.

    Returns:
        The ids fitted on, and the seconds it took (reading included).
    """
    if not auxiliary and not uses_normals(detector):
        splits = []
    chosen: list[tuple[Dataset, Sequence[Record]]] = [(part, part.records) for part in auxiliary]
    if not auxiliary or uses_normals(detector):
        chosen += [(parts["train"], choose_shots(parts["train"].records, shots, seed)) for parts in splits]
    train = Selection(chosen)
    normal = [(parts["validation"], [record for record in parts["validation"].records if record.label != 1]) for parts in splits]
    validation = Selection(normal)
    torch.manual_seed(seed)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(track_stages(title))
        if folder is not None and detector.needs.trains:
            datasets = [*auxiliary, *(part for parts in splits for part in parts.values())]
            identity = {
                "mm3dad": __version__,
                "method": detector.name,
                "config": dataclasses.asdict(detector.config),
                "samples": train.ids,
                "data_sha256": fingerprint(datasets),
            }
            detector.training = stack.enter_context(open_training(folder, identity, tracker))
        detector.fit(train, progress=progress, validation=validation if len(validation) else None)
    return train.ids, time.perf_counter() - start


def fit_detector(
    method: str,
    dataset: str,
    root: str | Path,
    out: str | Path,
    *,
    categories: Sequence[str] | None = None,
    shots: int | None = None,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    multiclass: bool = False,
    device: str | None = "cpu",
    auxiliary: str | None = None,
    tracker: str | None = None,
) -> list[dict[str, Any]]:
    """Fit one detector per category (or one for all) and save each with a `fit.json` beside it.

    A single model goes to `out` itself, several go to `out/<category>`. A method that trains keeps checkpoints beside its model
    until all are saved; an interrupted call, made again, goes on from them.

    Args:
        method: name of the method.
        dataset: name of the dataset's kind.
        root: folder of the dataset.
        out: folder of the model or models.
        categories: None for all.
        shots: K normal samples of each category, None for all.
        seed: governs the choice of shots and the detector.
        options: of the method and of the dataset.
        multiclass: one model for all categories.
        device: auto, cpu, cuda or cuda:N.
        auxiliary: DATASET:ROOT[:CATEGORY,...], the labelled set of a method that needs one; by default the other categories of `root`.
        tracker: where the losses of a method that trains go as curves, tensorboard, wandb or mlflow; None keeps none.

    Returns:
        One row per model, as in its fit.json.

    Raises:
        ConfigError: an unknown name or option.
        DataError: data that cannot be fitted on.
        ModelError: `out` holds the checkpoint of another training.
        TrainingError: a training diverged.
        StorageError: `out` cannot be written.
    """
    own, theirs = split_options(method, dataset, options or {})
    check_use(make_detector(method, own, seed, device), auxiliary, [shots])
    if tracker is not None:
        require_tracker(tracker)
    names = choose_categories(dataset, root, categories)
    out = require_writable(out)
    groups = [names] if multiclass else [[name] for name in names]
    rows = []
    for group in groups:
        detector = make_detector(method, own, seed, device)
        splits = [open_splits(dataset, root, name, detector, theirs, ("train", "validation")) for name in group]
        others = open_auxiliary(detector, auxiliary, dataset, root, theirs, group) if is_auxiliary(detector) else []
        folder = out if len(groups) == 1 else out / group[0]
        with held(folder, ".*.part"):
            ids, seconds = fit_on(detector, splits, shots, seed, f"fit {', '.join(group)}", others, folder, tracker)
            detector.save(folder)
            rows.append(
                {
                    "folder": str(folder),
                    "mm3dad": __version__,
                    "method": method,
                    "config": dataclasses.asdict(detector.config),
                    "weights": detector.weights,
                    "dataset": {"name": dataset, "root": str(Path(root).resolve()), "options": theirs},
                    "categories": group,
                    "auxiliary": describe_auxiliary(others),
                    "shots": shots,
                    "seed": seed,
                    "samples": ids,
                    "data_sha256": fingerprint([*others, *(part for parts in splits for part in parts.values())]),
                    "fit_seconds": round(seconds, 3),
                    "bank_bytes": detector.bank_bytes,
                    "training": describe_training(detector.training),
                    "versions": list_versions(),
                }
            )
            files.write_json(folder / "fit.json", rows[-1])
    for row in rows:
        remove_checkpoints(Path(row["folder"]) / CHECKPOINTS)
    return rows
