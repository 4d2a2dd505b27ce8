"""Ask a saved model why a place has its score, and find the good parts that it compares with."""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm3dad import files
from mm3dad.errors import DataError, Mm3dadError
from mm3dad.registry import DATASETS

if TYPE_CHECKING:
    from mm3dad.methods import Detector
    from mm3dad.methods.explanation import Explanation
    from mm3dad.types import Sample

KEPT = 12  # samples in memory: those of one or two clicks


class NormalSamples:
    """The good parts a saved model was fitted on, read by the ids that its explanations name.

    Args:
        folder: of the model; `mm3dad fit` left its fit.json there, which says where the parts lie.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.read = lru_cache(maxsize=KEPT)(self._read)

    def _read(self, identity: str) -> Sample:
        """Return a sample.

        Raises:
            DataError: no fit.json, the data were moved, or they have no such sample.
        """
        row = self._row()
        plain, turn = re.sub(r"\+[0-3]m?$", "", identity), re.search(r"\+([0-3])(m?)$", identity)
        category = row["categories"][0]
        if len(row["categories"]) > 1:
            category, _, plain = plain.partition("/")
        try:
            dataset = DATASETS.get(row["dataset"]["name"])(row["dataset"]["root"], category, "train", **row["dataset"]["options"])
            record = {record.id: record for record in dataset.records}[plain]
            sample = dataset.read(record)
        except (Mm3dadError, KeyError) as error:
            reason = error if isinstance(error, Mm3dadError) else f"no sample {plain!r}"
            raise DataError(f"normal sample {identity!r} cannot be read ({reason}); put the data back where they were") from error
        if turn is None:
            return sample
        from mm3dad.features.branches import augment

        return augment(sample, int(turn[1]), bool(turn[2]))  # with one good part, the model also knows turned copies of it

    def _row(self) -> dict[str, Any]:
        path = self.folder / "fit.json"
        if not path.is_file():
            raise DataError(f"{self.folder} has no fit.json, so its normal samples are unknown; make the model with `mm3dad fit`")
        row = files.read_json(path)
        try:
            name, root, options = (row["dataset"][key] for key in ("name", "root", "options"))
            return {"categories": [str(one) for one in row["categories"]], "dataset": {"name": name, "root": root, "options": options}}
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} does not say where the data lie ({error!r}); fit again") from error


class Explainer:
    """A saved model that explains its scores; it is loaded when it is first asked, so that a viewer can draw before.

    Args:
        folder: of the model.

    Raises:
        ModelError: there is no model.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.normals = Path(folder), NormalSamples(folder)
        if not (self.folder / "model.json").is_file():
            _load(self.folder)  # says what is missing

    @cached_property
    def detector(self) -> Detector:
        """The model.

        Raises:
            ModelError: it is damaged.
        """
        return _load(self.folder)

    def explain(self, sample: Sample) -> Explanation:
        """Return why a sample has its scores.

        Raises:
            ConfigError: the method explains nothing.
            DataError: the sample cannot be scored.
            ModelError: the model is damaged.
        """
        return self.detector.explain(sample)


def _load(folder: Path) -> Detector:
    """Load a model, and torch with it."""
    from mm3dad.methods import load_detector

    return load_detector(folder)
