"""What run/ gives a method that trains: a folder for checkpoints, an identity, curves for a tracker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm3dad.nets.task import TrainingRun
from mm3dad.run.track import open_tracker

CHECKPOINTS = "training"  # folder beside the model


@contextmanager
def open_training(folder: Path, identity: dict[str, Any], tracker: str | None = None) -> Iterator[TrainingRun]:
    """Give the place of a training's checkpoints, and send its curves to a tracker while it runs.

    Args:
        folder: of the model.
        identity: method, settings and data, which a checkpoint must share to be taken up.
        tracker: tensorboard, wandb or mlflow; None keeps no curves.

    Raises:
        ConfigError, MissingPackageError, StorageError: the tracker cannot be used.
    """
    if tracker is None:
        yield TrainingRun(folder / CHECKPOINTS, identity)
        return
    with open_tracker(tracker, folder, identity) as log:
        yield TrainingRun(folder / CHECKPOINTS, identity, log)


def describe_training(run: TrainingRun) -> dict[str, Any]:
    """Return what fit.json says of each task: validation before, epoch kept, losses of every epoch."""
    return {name: asdict(history) for name, history in run.histories.items()}
