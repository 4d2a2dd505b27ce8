"""mm3dad: find defects on manufactured parts from an RGB image and a 3D point cloud of the same view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm3dad.types import Meta, Prediction, Sample

if TYPE_CHECKING:
    from mm3dad.data import Dataset
    from mm3dad.methods import Detector

__version__ = "0.1.0"
__all__ = [
    "Meta",
    "Prediction",
    "Sample",
    "__version__",
    "create",
    "evaluate",
    "list_methods",
    "list_synthesizers",
    "load",
    "open_dataset",
]


def list_methods() -> list[str]:
    """Return the names that `create` takes."""
    from mm3dad.registry import METHODS

    return METHODS.names()


def list_synthesizers() -> list[str]:
    """Return the names of the defect synthesizers."""
    from mm3dad.registry import SYNTHESIZERS

    return SYNTHESIZERS.names()


def create(name: str, **config: Any) -> Detector:
    """Make an unfitted detector, e.g. `create("duet", modalities="rgb")`.

    Raises:
        ConfigError: unknown method or option; the message names the nearest known one.
    """
    from mm3dad.registry import METHODS

    return METHODS.get(name)(**config)


def load(folder: str) -> Detector:
    """Load a detector that `Detector.save` wrote, or "hub:OWNER/NAME[@REVISION]", one that `mm3dad push` uploaded.

    Raises:
        ModelError: the folder is missing, damaged or of a newer format version.
        ConfigError, StorageError: the hub has no such repository, or cannot be reached.
    """
    from mm3dad.methods import load_detector

    if str(folder).startswith("hub:"):
        from mm3dad.run.hub import fetch_model

        folder = str(fetch_model(str(folder).removeprefix("hub:")))

    return load_detector(folder)


def open_dataset(name: str, root: str, category: str, split: str, **options: Any) -> Dataset:
    """Open one split ("train", "validation" or "test") of one category; samples are read on access.

    Raises:
        DataError: the tree is missing or does not have the expected layout.
    """
    from mm3dad.registry import DATASETS

    return DATASETS.get(name)(root, category, split, **options)


def evaluate(detector: Detector, dataset: Dataset, eval_size: int | str = 224) -> dict[str, Any]:
    """Score a fitted detector on a dataset; returns the metrics of the protocol (docs/protocol.md)."""
    from mm3dad.run.evaluate import evaluate_detector

    return evaluate_detector(detector, dataset, eval_size=eval_size)
