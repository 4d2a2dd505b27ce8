"""What there is to look at behind a path: entries of a result folder, a dataset tree or one file, each read when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm3dad.errors import DataError, nearest_name
from mm3dad.types import Meta
from mm3dad.view.colors import Array
from mm3dad.view.outputs import Row, is_output, read_maps, read_output, read_row_sample
from mm3dad.view.preview import read_preview
from mm3dad.view.scene import MAP_NAMES, Scene, build_scene, explained_scene
from mm3dad.view.why import Why, explain_place

if TYPE_CHECKING:
    from mm3dad.methods.explanation import Explanation
    from mm3dad.run.explain import Explainer
    from mm3dad.types import Sample

KINDS = ("found", "missed", "false alarm", "passed")  # what a threshold makes of a labelled sample
EXPLAINED = 3  # places whose explanation goes along with a page


@dataclass
class Entry:
    """One sample to look at.

    Args:
        id: unique within the path, e.g. "test/hole/003".
        category: product class.
        defect: defect folder, None where unknown.
        label: 0, 1, or None where unknown.
        score, threshold: of the image, None where nobody scored it.
        pixel_threshold: of the map, None where the model is not calibrated for it.
        source: the row of a result folder, or the file to read.
        paths: role -> file.
        model: scores and explains the sample; None shows what was kept.
    """

    id: str
    category: str
    defect: str | None
    label: int | None
    score: float | None
    threshold: float | None
    source: Row | Path
    paths: dict[str, str] = field(default_factory=dict, repr=False)
    model: Explainer | None = field(default=None, repr=False)
    pixel_threshold: float | None = None

    @property
    def kind(self) -> str | None:
        """One of `KINDS`; None without a score, a threshold or a label."""
        if self.score is None or self.threshold is None or self.label is None:
            return None
        called = self.score > self.threshold
        return ("found" if called else "missed") if self.label else ("false alarm" if called else "passed")

    @property
    def title(self) -> str:
        """Category, id and score, as a head line."""
        score = "" if self.score is None else f", score {self.score:.3g}"
        return f"{self.category} / {self.id}{score}"

    @cached_property
    def sample(self) -> Sample:
        """The sample, read now.

        Raises:
            DataError: its files cannot be read.
        """
        if isinstance(self.source, Path):
            from mm3dad.data.single import read_sample

            return read_sample(self.source)
        sample = read_row_sample(self.source)
        if sample is None:
            listed = ", ".join(self.source.paths.values()) or "none recorded"
            raise DataError(f"the files of {self.id!r} cannot be read ({listed}); put them back or view another sample")
        return sample

    @cached_property
    def explanation(self) -> Explanation | None:
        """What the model says, None without one.

        Raises:
            ConfigError: its method explains nothing.
        """
        if self.model is None:
            return None
        found = self.model.explain(self.sample)
        self.score, self.threshold = found.prediction.score, found.prediction.threshold
        self.pixel_threshold = found.prediction.pixel_threshold
        return found

    def open(self) -> Scene:
        """Return the scene: with the model's scores and groups, else with the maps that were kept."""
        return self.preview() if self.explanation is None else explained_scene(self.explanation)

    def preview(self) -> Scene:
        """Return the scene with the maps that were kept, without asking the model."""
        maps: dict[str, Array] = {}
        if isinstance(self.source, Row):
            maps = {name: values for name, values in read_maps(self.source).items() if name in MAP_NAMES}
        scene = None
        if "sample" not in self.__dict__:
            scene = read_preview(self.paths, maps, Meta(self.id, self.category, self.defect, dict(self.paths)), self.label)
        return build_scene(self.sample, maps) if scene is None else scene

    def explain(self, row: int, column: int) -> Why | None:
        """Explain a place; None without a model."""
        if self.explanation is None or self.model is None:
            return None
        return explain_place(self.explanation, row, column, self.model.normals.read)

    def explain_peaks(self) -> list[Why]:
        """Explain the highest places of the map."""
        places = self.explanation.peaks(EXPLAINED) if self.explanation is not None else []
        return [why for place in places if (why := self.explain(*place)) is not None]

    def close(self) -> None:
        """Forget what was read; the entry can be opened again."""
        for name in ("sample", "explanation"):
            self.__dict__.pop(name, None)


def list_entries(path: str | Path, model: Explainer | None = None) -> list[Entry]:
    """Return what there is behind a path: the highest score first, or a dataset in the order of its files.

    Raises:
        DataError: nothing to see there.
    """
    path = Path(path)
    if not is_output(path):
        from mm3dad.data.single import find_record, list_inputs

        found = []
        for file in list_inputs(path):
            record = find_record(file)
            found.append(Entry(record.id, record.category, record.defect, record.label, None, None, file, dict(record.paths), model))
        return found
    rows = sorted((row for run in read_output(path).first_runs() for row in run.rows), key=lambda row: -row.score)
    if not rows:
        raise DataError(f"{path} holds no scored sample; run evaluate or predict again")
    return [
        Entry(row.id, row.category, row.defect, _label(row), row.score, row.threshold, row, row.paths, model, row.pixel_threshold)
        for row in rows
    ]


def _label(row: Row) -> int | None:
    """The label that was kept, else what the folder of the file says: predict keeps none."""
    if row.label is not None or "/" not in row.id:
        return row.label
    defect = row.defect or row.id.split("/")[-2]
    return int(defect != "good")


def pick_entry(entries: Sequence[Entry], path: str | Path, sample_id: str | None = None) -> Entry:
    """Return the entry of an id, else the one worth a first look: the highest score, or the first defective sample of a dataset.

    Raises:
        DataError: no such sample.
    """
    if sample_id is not None:
        found = [entry for entry in entries if entry.id == sample_id]
        if not found:
            raise DataError(f"{path} has no sample {sample_id!r}; {nearest_name(sample_id, {entry.id for entry in entries})}")
        return found[0]
    if entries[0].score is not None:
        return entries[0]
    return next((entry for entry in entries if entry.label == 1), entries[0])


def filter_entries(
    entries: Sequence[Entry], *, defect: str | None = None, kind: str | None = None, least: float | None = None
) -> list[Entry]:
    """Return the entries of a defect, of one of `KINDS`, with a score of at least `least`; None takes all."""
    return [
        entry
        for entry in entries
        if (defect is None or entry.defect == defect)
        and (kind is None or entry.kind == kind)
        and (least is None or (entry.score is not None and entry.score >= least))
    ]


def rescore_entries(entries: Sequence[Entry], model: Explainer) -> list[Entry]:
    """Return the same samples, to be scored by another model."""
    return [replace(entry, score=None, threshold=None, model=model) for entry in entries]


def pair_entries(entries: Sequence[Entry], others: Sequence[Entry]) -> dict[tuple[str, str], Entry]:
    """Return the other result of each sample, by category and id.

    Raises:
        DataError: the two have no sample in common.
    """
    known = {(entry.category, entry.id) for entry in entries}
    found: dict[tuple[str, str], Any] = {(other.category, other.id): other for other in others if (other.category, other.id) in known}
    if not found:
        raise DataError(
            f"the two have no sample in common ({entries[0].category}/{entries[0].id} against {others[0].category}/{others[0].id}); "
            "compare results of the same samples"
        )
    return found
