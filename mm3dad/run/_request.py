"""The checked arguments of an evaluation, and the runs they ask for."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Container, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mm3dad
from mm3dad.data import Dataset
from mm3dad.errors import ConfigError, DataError
from mm3dad.run._arguments import make_detector, resolve_device, split_options
from mm3dad.run._runs import Run
from mm3dad.run._splits import choose_categories, open_splits
from mm3dad.run._unit import Unit
from mm3dad.run.auxiliary import check_use, describe_auxiliary, is_auxiliary, open_auxiliary
from mm3dad.run.measure import parse_eval_size
from mm3dad.run.selection import choose_shots, fingerprint
from mm3dad.run.table import shots_name

if TYPE_CHECKING:
    from mm3dad.methods import Detector


@dataclasses.dataclass(frozen=True)
class Request:
    """Checked arguments of `evaluate`; `probe` is an unfitted detector of the first seed."""

    method: str
    dataset: str
    root: str
    categories: list[str]
    shots: list[int | None]
    seeds: list[int]
    options: dict[str, Any]
    multiclass: bool
    eval_size: int | str
    device: str
    own: dict[str, Any]
    theirs: dict[str, Any]
    probe: Detector
    splits: dict[str, dict[str, Dataset]]
    auxiliary: str | None
    others: dict[str, list[Dataset]]

    @cached_property
    def weights(self) -> list[dict[str, Any]]:
        """What results say of the weights; asked once, since an unfitted detector loads its networks to tell."""
        return self.probe.weights

    def arguments(self) -> dict[str, Any]:
        names = ("method", "dataset", "root", "categories", "seeds", "options", "multiclass", "eval_size", "device", "auxiliary")
        return {**{name: getattr(self, name) for name in names}, "shots": [shots_name(count) for count in self.shots]}

    def command(self) -> str:
        """The command line that repeats this evaluation."""
        words = ["mm3dad", "evaluate", self.method, "--dataset", self.dataset, "--root", self.root]
        for name in self.categories:
            words += ["--category", name]
        words += ["--shots", ",".join(map(shots_name, self.shots)), "--seeds", ",".join(map(str, self.seeds))]
        for name, value in {**self.options, "eval_size": self.eval_size}.items():
            words += ["--set", f"{name}={','.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"]
        words += ["--multiclass"] * self.multiclass + ["--device", self.device]
        words += ["--auxiliary", self.auxiliary] if self.auxiliary is not None else []
        return shlex.join(words)

    def config(self, seed: int | None) -> dict[str, Any]:
        """The resolved configuration; without a seed the field is left out, as runs differ in it."""
        values = dataclasses.asdict(self.probe.config)
        if "seed" in values and seed is not None:
            values["seed"] = seed
        return {name: value for name, value in values.items() if name != "seed" or seed is not None}

    def plan(self, out: Path) -> list[list[Run]]:
        """Return the runs in groups that share one fit."""
        together = [self.categories] if self.multiclass else [[name] for name in self.categories]
        fitted = {
            tuple(group): fingerprint(
                [*self.others[group[0]], *(self.splits[name][split] for name in group for split in ("train", "validation"))]
            )
            for group in together
        }
        tested = {name: fingerprint([self.splits[name]["test"]]) for name in self.categories}
        groups = []
        for group, seed, shots in itertools.product(together, self.seeds, self.shots):
            identity = {
                "mm3dad": mm3dad.__version__,
                "method": self.method,
                "config": self.config(seed),
                "weights": self.weights,
                "dataset": self.dataset,
                "dataset_options": self.theirs,
                "root": str(Path(self.root).resolve()),
                "fitted_together": group if self.multiclass else None,
                "auxiliary": describe_auxiliary(self.others[group[0]]),
                "training_files": fitted[tuple(group)],
                "eval_size": self.eval_size,
            }
            groups.append(
                [
                    Run(name, seed, shots, out / "runs" / Run.name(name, seed, shots), {**identity, "test_files": tested[name]})
                    for name in group
                ]
            )
        return groups

    def unit(self, group: list[Run], finished: Container[Path], overwrite: bool) -> Unit | None:
        """Return what is left to do of a group of `plan`, None where nothing is."""
        left = [run for run in group if run.folder not in finished]
        first = group[0]
        splits = {run.category: self.splits[run.category] for run in group}
        others = self.others[first.category]
        return Unit(self.method, self.own, self.device, self.eval_size, left, splits, others, first.folder, overwrite) if left else None


def check_request(
    method: str,
    dataset: str,
    root: str | Path,
    categories: Sequence[str] | None,
    shots: Sequence[int | None],
    seeds: Sequence[int],
    options: dict[str, Any],
    multiclass: bool,
    eval_size: int | str,
    device: str | None,
    auxiliary: str | None = None,
) -> Request:
    """Find what is wrong with the arguments or the data before the first fit; the arguments are those of `evaluate`."""
    seeds, shots = list(dict.fromkeys(seeds)), list(dict.fromkeys(shots))
    if not seeds or not shots:
        raise ConfigError("evaluate needs at least one seed and one number of shots, got none; use --seeds 0 --shots full")
    own, theirs = split_options(method, dataset, options)
    eval_size = parse_eval_size(eval_size)
    device = resolve_device(device)
    probe = make_detector(method, own, seeds[0], device)
    check_use(probe, auxiliary, shots)
    names = choose_categories(dataset, root, categories)
    splits = {name: open_splits(dataset, root, name, probe, theirs, ("train", "validation", "test")) for name in names}
    for parts in splits.values():
        for count in shots:
            choose_shots(parts["train"].records, count, seeds[0])
        unlabelled = [record.id for record in parts["test"].records if record.label is None]
        if unlabelled:
            raise DataError(f"sample {unlabelled[0]!r} has no label; evaluate needs good and defective samples in folders of their own")
    others: dict[str, list[Dataset]] = {name: [] for name in names}
    if is_auxiliary(probe):
        for group in [names] if multiclass else [[name] for name in names]:
            others.update(dict.fromkeys(group, open_auxiliary(probe, auxiliary, dataset, root, theirs, group)))
    return Request(
        method,
        dataset,
        str(root),
        names,
        shots,
        seeds,
        options,
        multiclass,
        eval_size,
        device,
        own,
        theirs,
        probe,
        splits,
        auxiliary,
        others,
    )
