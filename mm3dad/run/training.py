"""What run/ gives a method that trains: a folder for checkpoints, an identity, curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm3dad.errors import MissingPackageError
from mm3dad.nets.task import TrainingRun

CHECKPOINTS, CURVES = "training", "tensorboard"  # folders beside the model


def require_tensorboard() -> None:
    """Make sure that curves can be written before hours are spent.

    Raises:
        MissingPackageError: TensorBoard is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise MissingPackageError("curves need tensorboard, which is not installed; pip install 'mm3dad[tensorboard]'") from None


@contextmanager
def open_training(folder: Path, identity: dict[str, Any], tensorboard: bool = False) -> Iterator[TrainingRun]:
    """Give the place of a training's checkpoints, and write its curves while it runs.

    Args:
        folder: of the model.
        identity: method, settings and data, which a checkpoint must share to be taken up.
        tensorboard: write curves to `folder`/tensorboard.

    Raises:
        MissingPackageError: curves are wanted and TensorBoard is not installed.
    """
    if not tensorboard:
        yield TrainingRun(folder / CHECKPOINTS, identity)
        return
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / CURVES)) as writer:

        def log(task: str, epoch: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(f"{task}/{name}", value, epoch)
            writer.flush()

        yield TrainingRun(folder / CHECKPOINTS, identity, log)


def describe_training(run: TrainingRun) -> dict[str, Any]:
    """Return what fit.json says of each task: validation before, epoch kept, losses of every epoch."""
    return {name: asdict(history) for name, history in run.histories.items()}
