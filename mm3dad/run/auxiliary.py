"""The labelled set of other products that a zero-shot method is fitted on: which one, and that it is never the target's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm3dad.data import Dataset
from mm3dad.errors import ConfigError, DataError, nearest_name
from mm3dad.registry import DATASETS
from mm3dad.run._splits import choose_categories, open_splits

if TYPE_CHECKING:
    from mm3dad.methods import Detector

FORM = "expected DATASET:ROOT or DATASET:ROOT:CATEGORY,CATEGORY, e.g. synthetic:data/synthetic:cookie,potato"


@dataclass(frozen=True)
class Source:
    """Where auxiliary samples come from; `categories` None means all but the target's."""

    dataset: str
    root: str
    categories: tuple[str, ...] | None = None

    @staticmethod
    def parse(text: str) -> Source:
        """Read DATASET:ROOT[:CATEGORY,...]; the root may hold colons, then the categories must be given.

        Raises:
            ConfigError: another form, or an unknown dataset.
        """
        dataset, _, rest = text.partition(":")
        if dataset not in DATASETS.names():
            raise ConfigError(f"--auxiliary {text!r}: unknown dataset {dataset!r}; {nearest_name(dataset, DATASETS.names())}")
        root, colon, names = rest.rpartition(":")
        if not colon or Path(rest).is_dir():
            root, names = rest, ""
        if not root:
            raise ConfigError(f"--auxiliary {text!r} names no folder; {FORM}")
        chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
        return Source(dataset, root, chosen or None)


def is_auxiliary(detector: Detector) -> bool:
    """Say whether a method is fitted on an auxiliary set."""
    return "auxiliary" in detector.needs.settings


def uses_normals(detector: Detector) -> bool:
    """Say whether a method is fitted on normal samples of the target; one that is neither this nor auxiliary learns nothing (zero-shot)."""
    return bool({"one-class", "few-shot", "multi-class"} & set(detector.needs.settings))


def check_use(detector: Detector, auxiliary: str | None, shots: Sequence[int | None]) -> None:
    """Refuse an auxiliary set that nobody reads, and shots of the target where none are used.

    Raises:
        ConfigError: either.
    """
    if not is_auxiliary(detector):
        if auxiliary is not None:
            raise ConfigError(
                f"{detector.name} is fitted on normal samples of the target and takes no auxiliary set; leave --auxiliary out"
            )
    elif "few-shot" not in detector.needs.settings and any(count is not None for count in shots):
        raise ConfigError(f"{detector.name} is fitted on an auxiliary set and uses no sample of the target; leave --shots out")
    if not is_auxiliary(detector) and not uses_normals(detector) and any(count is not None for count in shots):
        raise ConfigError(f"{detector.name} is zero-shot and learns from no normal sample; leave --shots out")


def open_auxiliary(
    detector: Detector, auxiliary: str | None, dataset: str, root: str | Path, options: dict[str, Any], targets: Sequence[str]
) -> list[Dataset]:
    """Open the labelled test splits a method is fitted on before it scores `targets`.

    Args:
        detector: whose modalities are read.
        auxiliary: "DATASET:ROOT[:CATEGORY,...]", or None for the other categories of the target's own root.
        dataset, root, options: the target's.
        targets: categories under test; a category of that name is never used, whatever its root.

    Raises:
        ConfigError: an auxiliary set in another form, or one that names a target.
        DataError: no category left, or a set without normal samples, without defects or with a defect that has no mask.
    """
    source = Source(dataset, str(root)) if auxiliary is None else Source.parse(auxiliary)
    known = choose_categories(source.dataset, source.root, source.categories)
    named = [name for name in source.categories or () if name in targets]
    if named:
        raise ConfigError(f"the auxiliary set must not hold the category under test, {named[0]!r}; name other categories")
    names = [name for name in known if name not in targets]
    if not names:
        raise DataError(
            f"{detector.name} needs a labelled set of other products, and {source.root} holds no category beside {', '.join(targets)}; "
            "give one with --auxiliary DATASET:ROOT[:CATEGORY,...]"
        )
    own = options if source.dataset == dataset else {}
    opened = [open_splits(source.dataset, source.root, name, detector, own, ("test",))["test"] for name in names]
    records = [record for part in opened for record in part.records]
    for label, word in ((0, "normal"), (1, "defective")):
        if all(record.label != label for record in records):
            raise DataError(
                f"the auxiliary set {source.root} ({', '.join(names)}) has no {word} sample; use a labelled test split with both"
            )
    bare = [f"{record.category}/{record.id}" for record in records if record.label == 1 and "gt" not in record.paths]
    if bare:
        raise DataError(f"auxiliary sample {bare[0]!r} is defective and has no mask ({len(bare)} such); add gt/ or choose other categories")
    return opened


def describe_auxiliary(opened: Sequence[Dataset]) -> dict[str, Any] | None:
    """Return what a result says of an auxiliary set; None without one."""
    if not opened:
        return None
    records = [record for part in opened for record in part.records]
    return {
        "dataset": opened[0].name,
        "root": str(opened[0].root.resolve()),
        "split": "test",
        "categories": [part.category for part in opened],
        "samples": len(records),
        "defective": sum(record.label == 1 for record in records),
    }
