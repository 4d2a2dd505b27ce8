"""Where the curves of a training go: TensorBoard, Weights & Biases or MLflow, each behind an extra of its own name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from mm3dad.errors import ConfigError, MissingPackageError, StorageError, nearest_name, one_line
from mm3dad.nets.task import Log

PROJECT = "mm3dad"  # of W&B, and the experiment of MLflow; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME overrule it


@contextmanager
def _tensorboard(folder: Path, name: str, settings: dict[str, Any]) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def log(task: str, epoch: int, values: dict[str, float]) -> None:
            for key, value in values.items():
                writer.add_scalar(f"{task}/{key}", value, epoch)
            writer.flush()

        yield log


@contextmanager
def _wandb(folder: Path, name: str, settings: dict[str, Any]) -> Iterator[Log]:
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(folder),
            name=name,
            config=settings,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.Error as error:
        raise ConfigError(f"W&B does not start a run ({one_line(error)}); run `wandb login`, or set WANDB_MODE=offline") from error
    seen: set[str] = set()
    failed = True

    def log(task: str, epoch: int, values: dict[str, float]) -> None:
        if task not in seen:  # each task counts its own epochs, W&B's step only grows
            run.define_metric(f"{task}/*", step_metric=f"{task}/epoch")
            seen.add(task)
        run.log({f"{task}/epoch": epoch, **{f"{task}/{key}": value for key, value in values.items()}})

    try:
        yield log
        failed = False
    finally:
        run.finish(exit_code=int(failed))


@contextmanager
def _mlflow(folder: Path, name: str, settings: dict[str, Any]) -> Iterator[Log]:
    from mlflow import MlflowClient, MlflowException

    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        raise ConfigError("MLflow needs MLFLOW_TRACKING_URI, which is not set; e.g. MLFLOW_TRACKING_URI=http://127.0.0.1:5000")

    @contextmanager
    def explained() -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            raise StorageError(
                f"MLflow at {address} takes no curves ({one_line(error)}); check MLFLOW_TRACKING_URI, then run again"
            ) from error

    with explained():
        client = MlflowClient(tracking_uri=address)
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = client.get_experiment_by_name(title)
        run = client.create_run(known.experiment_id if known is not None else client.create_experiment(title), run_name=name)
        for key, value in settings.items():
            client.log_param(run.info.run_id, key, value)
    status = "FAILED"

    def log(task: str, epoch: int, values: dict[str, float]) -> None:
        with explained():
            for key, value in values.items():
                client.log_metric(run.info.run_id, f"{task}/{key}", value, step=epoch)

    try:
        yield log
        status = "FINISHED"
    finally:
        with explained():
            client.set_terminated(run.info.run_id, status)


Opener = Callable[[Path, str, dict[str, Any]], AbstractContextManager[Log]]
TRACKERS: dict[str, tuple[str, Opener]] = {
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "wandb": ("wandb", _wandb),
    "mlflow": ("mlflow", _mlflow),
}


def require_tracker(tracker: str) -> None:
    """Make sure that curves can be written before hours are spent.

    Raises:
        ConfigError: no such tracker.
        MissingPackageError: its library is not installed.
    """
    if tracker not in TRACKERS:
        raise ConfigError(f"unknown tracker {tracker!r}; {nearest_name(tracker, TRACKERS)}")
    try:
        importlib.import_module(TRACKERS[tracker][0])
    except ImportError:
        raise MissingPackageError(f"curves need {tracker}, which is not installed; pip install 'mm3dad[{tracker}]'") from None


def open_tracker(tracker: str, folder: Path, identity: dict[str, Any]) -> AbstractContextManager[Log]:
    """Open a run of a tracker; what it yields is called with (task, epoch, values).

    Args:
        tracker: of `TRACKERS`.
        folder: of the model; TensorBoard and W&B write below it, MLflow to MLFLOW_TRACKING_URI.
        identity: of the training; method, version, options and the number of samples become the settings of the run.

    Raises:
        ConfigError, MissingPackageError: as `require_tracker`; W&B or MLflow are not told where to write.
        StorageError: MLflow's server cannot be reached.
    """
    require_tracker(tracker)
    settings = {"mm3dad": identity.get("mm3dad"), "method": identity.get("method"), "samples": len(identity.get("samples", ()))}
    settings |= {key: str(value) for key, value in identity.get("config", {}).items()}
    return TRACKERS[tracker][1](folder, f"{settings['method']} {folder.name}", settings)
