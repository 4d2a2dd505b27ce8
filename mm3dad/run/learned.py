"""Synthesizers that learn before they make anything: what they learn from, where the model lies, and that it is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm3dad import __version__
from mm3dad.data import Dataset, Record
from mm3dad.errors import DataError, ModelError
from mm3dad.features.weights import TABLE
from mm3dad.nets.training import remove_checkpoints
from mm3dad.run._lock import held
from mm3dad.run.progress import track_stages
from mm3dad.run.selection import Selection, choose_shots, fingerprint
from mm3dad.run.training import CHECKPOINTS, open_training

MODELS = ".models"  # in the folder of what is written; a dataset's reader passes it over
USED = "the defects learned from are test images: leave them out of every test of what is trained on this data set"


def choose_labelled(records: Sequence[Record]) -> list[Record]:
    """Return the first third of each type of defect, by id, at least one: SeaS's published split."""
    kinds = sorted({str(record.defect) for record in records if record.label == 1})
    found = []
    for kind in kinds:
        own = sorted((record for record in records if record.label == 1 and str(record.defect) == kind), key=lambda record: record.id)
        found += own[: max(1, len(own) // 3)]
    return found


def learn_defects(kind: Any, config: Any, opened: dict[str, Dataset], folder: Path) -> dict[str, Any]:
    """Fit a synthesizer on one category and save it, unless it is there already; an interrupted training goes on.

    Args:
        kind: class of the synthesizer.
        config: its settings.
        opened: datasets "train" and "test" of the category.
        folder: of the model.

    Returns:
        What a manifest says: the model, its weights and licence, and the ids it was fitted on.

    Raises:
        DataError: no labelled defect, or one without a mask; a folder whose model was fitted on other data or with other settings.
        TrainingError: the training diverged.
        StorageError: the folder cannot be written; checkpoints stay.
    """
    defects = choose_labelled(opened["test"].records)
    count = min(config.normals, len(opened["train"].records))
    normals = choose_shots(opened["train"].records, count, config.train_seed) if count else []
    ids = {"defects": [record.id for record in defects], "normals": [record.id for record in normals]}
    identity = {
        "mm3dad": __version__,
        "config": dataclasses.asdict(config),
        **ids,
        "data_sha256": fingerprint([opened["train"], opened["test"]]),
    }
    with held(folder, "", f"{CHECKPOINTS}/*"):
        made = _find(kind, folder, identity)
        if made is None:
            made = kind(config)
            with track_stages(f"{kind.name} {opened['train'].category}") as report, open_training(folder, identity) as run:
                made.fit(Selection([(opened["test"], defects)])[:], Selection([(opened["train"], normals)])[:], run, report)
            made.save(folder, identity)
            remove_checkpoints(folder / CHECKPOINTS)
    row = TABLE.get(config.weights)
    return {"model": str(folder), **made.describe(), "licence": row.licence if row else "none stated", **ids, "remember": USED}


def _find(kind: Any, folder: Path, identity: dict[str, Any]) -> Any:
    """Return the model of an earlier call, None where there is none."""
    try:
        kept = kind.identify(folder)
    except ModelError:
        if any(folder.glob("*.json")):
            raise
        return None
    if kept != identity:
        differing = sorted(key for key in {*kept, *identity} if kept.get(key) != identity.get(key))
        raise DataError(f"{folder} holds a model with other {', '.join(differing)}; choose a new folder for the output, or delete this one")
    return kind.load(folder)
