"""Categories of a dataset tree and their splits, opened with the modalities a detector uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm3dad.data import Dataset
from mm3dad.data.checks import check_dataset
from mm3dad.errors import DataError, nearest_name
from mm3dad.registry import DATASETS

if TYPE_CHECKING:
    from mm3dad.methods import Detector


def choose_categories(dataset: str, root: str | Path, wanted: Sequence[str] | None) -> list[str]:
    """Return the categories to work on: the wanted ones, once each, or all there are.

    Raises:
        DataError: a category that the tree does not have, or no tree.
    """
    if not Path(root).is_dir():
        raise DataError(f"expected a dataset folder at {root}, found {'a file' if Path(root).exists() else 'nothing'}; check --root")
    known = DATASETS.get(dataset).categories(root)
    for name in wanted or ():
        if name not in known:
            raise DataError(f"{root} has no category {name!r}; {nearest_name(name, known)}")
    return list(dict.fromkeys(wanted)) if wanted else list(known)


def open_splits(
    dataset: str, root: str | Path, category: str, detector: Detector, options: dict[str, Any], splits: Sequence[str]
) -> dict[str, Dataset]:
    """Open the splits with the modalities the detector uses, and check every pair and header.

    Raises:
        DataError: what is wrong with which file.
    """
    modalities = getattr(detector.config, "modalities", None)
    if not modalities and set(detector.needs.inputs) != {"rgb", "xyz"}:
        modalities = detector.needs.inputs
    opened = {}
    for split in splits:
        opened[split] = DATASETS.get(dataset)(root, category, split, modalities=modalities or None, **options)
        if len(opened[split]):
            check_dataset(opened[split])
    return opened
