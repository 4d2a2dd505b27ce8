"""One unit of an evaluation: one fit and the runs that it serves. What it needs is few and plain, so that another process can do it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm3dad.data import Dataset
from mm3dad.nets.training import remove_checkpoints
from mm3dad.run._arguments import make_detector
from mm3dad.run._fitting import fit_on
from mm3dad.run._runs import Run
from mm3dad.run.measure import measure, peak_memory, score_samples
from mm3dad.run.training import CHECKPOINTS

Finished = tuple[Path, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Unit:
    """A fit and the runs that are not finished.

    Args:
        method: its name.
        options: of the method.
        device: where it computes.
        eval_size: side of the square the maps are compared at, or "native".
        runs: those that wait, one per category; they share seed and shots.
        splits: the data sets of every category fitted on, by category and split.
        others: the auxiliary set.
        home: keeps the checkpoints.
        overwrite: older checkpoints are dropped.
    """

    method: str
    options: dict[str, Any]
    device: str
    eval_size: int | str
    runs: list[Run]
    splits: dict[str, dict[str, Dataset]]
    others: list[Dataset]
    home: Path
    overwrite: bool

    @property
    def title(self) -> str:
        """What the progress, or an error, says of it."""
        first = self.runs[0]
        return f"{'all categories' if len(self.splits) > 1 else first.category}, seed {first.seed}, {first.folder.name.rpartition('-')[2]}"

    def run(self) -> Iterator[Finished]:
        """Fit, and yield each run as it is finished and kept: its folder, and the content of its run.json."""
        seed, shots = self.runs[0].seed, self.runs[0].shots
        detector = make_detector(self.method, self.options, seed, self.device)
        if self.overwrite:
            remove_checkpoints(self.home / CHECKPOINTS)
        fitted_on, seconds = fit_on(detector, list(self.splits.values()), shots, seed, f"fit {self.title}", self.others, self.home)
        for run in self.runs:
            run.clear()
            scored = score_samples(detector, self.splits[run.category]["test"], self.eval_size, run.folder, f"predict {run.folder.name}")
            cost = {"fit_seconds": round(seconds, 3), "bank_bytes": detector.bank_bytes, "peak_rss_bytes": peak_memory()}
            yield run.folder, run.write({**measure(scored), **cost}, scored.rows, fitted_on)
        remove_checkpoints(self.home / CHECKPOINTS)


def run_unit(unit: Unit) -> list[Finished]:
    """Do a unit to its end, for a worker."""
    return list(unit.run())
