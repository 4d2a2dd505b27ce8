"""One fit: on chosen samples, under a seed, with checkpoints and progress; and one model, fitted and saved."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mm3dad import __version__, files
from mm3dad.data import Dataset, Record
from mm3dad.nets import parallel
from mm3dad.run._arguments import list_versions, make_detector
from mm3dad.run._lock import held
from mm3dad.run._pool import Workers, describe_workers
from mm3dad.run._splits import open_splits
from mm3dad.run.auxiliary import describe_auxiliary, is_auxiliary, open_auxiliary, uses_normals
from mm3dad.run.progress import track_stages
from mm3dad.run.rows import describe_machine
from mm3dad.run.selection import Selection, choose_shots, fingerprint
from mm3dad.run.training import CHECKPOINTS, describe_training, open_training

if TYPE_CHECKING:
    from mm3dad.methods import Detector


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
        progress = stack.enter_context(track_stages(title)) if parallel.rank() == 0 else None
        if folder is not None and detector.needs.trains:
            datasets = [*auxiliary, *(part for parts in splits for part in parts.values())]
            identity = {
                "mm3dad": __version__,
                "method": detector.name,
                "config": dataclasses.asdict(detector.config),
                "samples": train.ids,
                "data_sha256": fingerprint(datasets),
                **({"processes": parallel.count()} if parallel.is_parallel() else {}),
            }
            detector.training = stack.enter_context(open_training(folder, identity, tracker if parallel.rank() == 0 else None))
        detector.fit(train, progress=progress, validation=validation if len(validation) else None)
    return train.ids, time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to fit and save, which one worker does at a time; the fields are the arguments of `fit_detector`, checked.

    Args:
        own: options of the method.
        theirs: options of the dataset.
        group: the categories it is fitted on.
        folder: of the model.
    """

    method: str
    own: dict[str, Any]
    dataset: str
    root: str | Path
    theirs: dict[str, Any]
    group: list[str]
    shots: int | None
    seed: int
    device: str | None
    auxiliary: str | None
    folder: Path
    tracker: str | None
    workers: Workers

    def fit(self) -> dict[str, Any]:
        """Fit and save; return what fit.json says. Of the processes of one training, the first writes."""
        detector = make_detector(self.method, self.own, self.seed, self.device)
        splits = [open_splits(self.dataset, self.root, name, detector, self.theirs, ("train", "validation")) for name in self.group]
        others: list[Dataset] = []
        if is_auxiliary(detector):
            others = open_auxiliary(detector, self.auxiliary, self.dataset, self.root, self.theirs, self.group)
        is_first = parallel.rank() == 0
        with held(self.folder, "", f"{CHECKPOINTS}/*") if is_first else contextlib.nullcontext():
            parallel.wait_for_all()
            title = f"fit {', '.join(self.group)}"
            ids, seconds = fit_on(detector, splits, self.shots, self.seed, title, others, self.folder, self.tracker)
            row = {
                "folder": str(self.folder),
                "mm3dad": __version__,
                "method": self.method,
                "config": dataclasses.asdict(detector.config),
                "weights": detector.weights,
                "dataset": {"name": self.dataset, "root": str(Path(self.root).resolve()), "options": self.theirs},
                "categories": self.group,
                "auxiliary": describe_auxiliary(others),
                "shots": self.shots,
                "seed": self.seed,
                "samples": ids,
                "data_sha256": fingerprint([*others, *(part for parts in splits for part in parts.values())]),
                "fit_seconds": round(seconds, 3),
                "bank_bytes": detector.bank_bytes,
                "training": describe_training(detector.training),
                "processes": parallel.count(),
                "machine": {**describe_machine(str(getattr(detector.config, "device", "cpu"))), **describe_workers(self.workers)},
                "versions": list_versions(),
            }
            if is_first:
                detector.save(self.folder)
                files.write_json(self.folder / "fit.json", row)
            parallel.wait_for_all()
        return row


def fit_model(model: Model) -> dict[str, Any]:
    """Fit and save a model, for a worker."""
    return model.fit()
