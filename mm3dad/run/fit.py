"""Fit detectors on a dataset tree and save them: one per category, or one for all; here, by workers, or by torchrun's processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm3dad.nets import parallel
from mm3dad.nets.training import remove_checkpoints
from mm3dad.run._arguments import make_detector, require_writable, resolve_device, split_options
from mm3dad.run._fitting import Model, fit_model
from mm3dad.run._group import join_group, require_group
from mm3dad.run._lock import held
from mm3dad.run._pool import Workers, check_workers, run_parallel
from mm3dad.run._splits import choose_categories
from mm3dad.run.auxiliary import check_use
from mm3dad.run.progress import track
from mm3dad.run.track import require_tracker
from mm3dad.run.training import CHECKPOINTS


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
    workers: Workers = 1,
) -> list[dict[str, Any]]:
    """Fit one detector per category (or one for all) and save each with a `fit.json` beside it.

    A single model goes to `out` itself, several go to `out/<category>`. A method that trains keeps checkpoints beside its model
    until all are saved; an interrupted call, made again, goes on from them. Started by torchrun, all processes train each model together.

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
        tracker: where the curves of a method that trains go, tensorboard, wandb or mlflow; None keeps none.
        workers: processes that share the categories, each with one thread; "ray", "ray:N" or "ray:ADDRESS" for those of a cluster
            (docs/scale.md). With 1 all happens here, with the threads there are.

    Returns:
        One row per model, as in its fit.json; none in the further processes of torchrun.

    Raises:
        ConfigError: an unknown name or option, no such cluster, or torchrun for a method that does not train.
        DataError: data that cannot be fitted on.
        ModelError: `out` holds the checkpoint of another training.
        TrainingError: a training diverged.
        StorageError: `out` cannot be written.
    """
    workers = check_workers(workers)
    own, theirs = split_options(method, dataset, options or {})
    probe = make_detector(method, own, seed, device)
    check_use(probe, auxiliary, [shots])
    require_group(probe, device, workers)
    if tracker is not None:
        require_tracker(tracker)
    names = choose_categories(dataset, root, categories)
    out = require_writable(out)
    groups = [names] if multiclass else [[name] for name in names]
    workers = workers if len(groups) > 1 else 1
    models = [
        Model(
            method,
            own,
            dataset,
            root,
            theirs,
            group,
            shots,
            seed,
            device,
            auxiliary,
            out if len(groups) == 1 else out / group[0],
            tracker,
            workers,
        )
        for group in groups
    ]
    if workers in (None, 1):
        with join_group(device):
            rows = [model.fit() for model in models]
            is_first = parallel.rank() == 0
    else:
        jobs, titles, gpus = [(model,) for model in models], [", ".join(group) for group in groups], int(resolve_device(device) != "cpu")
        with held(out):
            found = run_parallel(fit_model, jobs, workers, names=titles, shared=out, gpus=gpus)
            by_folder = {row["folder"]: row for row in track(found, "fit", len(jobs))}
        rows, is_first = [by_folder[str(model.folder)] for model in models], True
    if not is_first:
        return []
    for row in rows:
        remove_checkpoints(Path(row["folder"]) / CHECKPOINTS)
    return rows
