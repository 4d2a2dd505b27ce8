"""Score parts as they come: samples one after the other, or files that a camera drops into a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm3dad import files
from mm3dad.data.single import find_record, list_inputs, read_sample
from mm3dad.errors import ConfigError, DataError, Mm3dadError, ModelError
from mm3dad.methods import load_detector
from mm3dad.run._arguments import require_writable, require_writable_file
from mm3dad.run.maps import file_stem
from mm3dad.run.outcomes import Outcome, check_prediction
from mm3dad.run.rows import describe_row
from mm3dad.run.warm import warm_up

if TYPE_CHECKING:
    from mm3dad.methods import Detector
    from mm3dad.types import Prediction, Sample

SETTLE = 0.1  # seconds without a change after which a file counts as written, if it also decodes
PATIENCE = 10.0  # seconds without a change after which a part that does not decode, or lacks a modality, is given up
POLL = 0.05

Stamp = list[list[Any]]


def require_ready(detector: Detector) -> None:
    """Refuse a detector that cannot judge one part by itself.

    Raises:
        ConfigError: a transductive method.
        ModelError: not fitted.
    """
    if "transductive" in detector.needs.settings:
        raise ConfigError(f"{detector.name} scores each sample by the others of its set and cannot score parts as they come; use predict")
    if not detector.is_fitted:
        raise ModelError(f"{detector.name} is not fitted; call fit(samples) or mm3dad.load(folder) first")


def score_one(detector: Detector, sample: Sample) -> Outcome:
    """Score one sample; an error of the sample is part of the outcome."""
    start = time.perf_counter()
    try:
        prediction = check_prediction(detector, sample, detector.predict(sample))
    except Mm3dadError as error:
        return Outcome(sample, None, error)
    return Outcome(sample, prediction, None, 1000 * (time.perf_counter() - start))


def stream(detector: Detector, samples: Iterable[Sample]) -> Iterator[Outcome]:
    """Score samples as they come, each before the next is asked for; one that cannot be scored does not end the stream.

    Args:
        detector: fitted or loaded; it stays warm.
        samples: any iterable, such as a generator that reads a camera.

    Yields:
        An outcome per sample: `prediction` or `error`, and the milliseconds it took.

    Raises:
        ConfigError: a transductive method.
        ModelError: not fitted.
    """
    require_ready(detector)
    for sample in samples:
        yield score_one(detector, sample)


@dataclass
class _Pending:
    """A part that is not scored yet: its files as last seen, and since when they are so."""

    stamp: Stamp
    since: float


class Watcher:
    """Finds the parts of a folder whose files are complete, each version of a part once.

    Args:
        folder: watched, with all folders below it.
        modalities: what a part must bring; it is waited for.
        settle, patience: seconds, as the constants of this file.
    """

    def __init__(self, folder: Path, modalities: tuple[str, ...], settle: float = SETTLE, patience: float = PATIENCE) -> None:
        self.folder, self.modalities, self.settle, self.patience = folder, modalities, settle, patience
        self._root = folder.resolve()
        self._pending: dict[Path, _Pending] = {}
        self._done: dict[str, Stamp] = {}

    def skip(self, rows: Iterable[Any]) -> None:
        """Take parts as done that an earlier run has scored (rows of its lines)."""
        for row in rows:
            if isinstance(row, dict) and row.get("error") is None and isinstance(row.get("part"), str):
                self._done[row["part"]] = row.get("stamp")

    def poll(self) -> Iterator[tuple[str, Stamp, Sample | DataError]]:
        """Yield (name, stamp, sample or why there is none) of each part that has become ready, and return."""
        try:
            paths = list_inputs(self.folder, with_links=True)
        except DataError:  # nothing there yet
            paths = []
        for path in paths:
            name = path.relative_to(self.folder).with_suffix("").as_posix()
            stamp, found = self._look(path)
            if self._done.get(name) == stamp:
                continue
            now = time.monotonic()
            pending = self._pending.setdefault(path, _Pending(stamp, now))
            if pending.stamp != stamp:
                self._pending[path] = pending = _Pending(stamp, now)
            if now - pending.since < self.settle:
                continue
            sample = self._read(path) if not isinstance(found, DataError) else found
            if isinstance(sample, DataError) and now - pending.since < self.patience:
                continue  # still being written, perhaps
            del self._pending[path]
            if self._look(path)[0] != stamp and not isinstance(sample, DataError):
                continue  # replaced while it was read
            self._done[name] = stamp
            yield name, stamp, sample

    def _look(self, path: Path) -> tuple[Stamp, DataError | None]:
        """Return name, size and time of a part's files, and what is wrong with them so far."""
        problem: DataError | None = None
        members = [path]
        try:
            record = find_record(path)
            members = sorted(Path(member) for role, member in record.paths.items() if role != "gt")
            missing = [name for name in self.modalities if name not in record.modalities]
            if missing:
                problem = DataError(f"{path} came without {' and '.join(missing)}, which the model needs; write all files of a part")
        except DataError as error:
            problem = error
        stamp: Stamp = []
        for member in members:
            if not member.resolve().is_relative_to(self._root):
                problem = DataError(f"{member} leads out of the watched folder; put the file itself there")
            try:
                state = member.stat()
                stamp.append([member.name, state.st_size, state.st_mtime_ns])
            except OSError as error:
                problem = DataError(f"cannot read {member}: {error.strerror}; write it again")
        return stamp, problem

    def _read(self, path: Path) -> Sample | DataError:
        try:
            return read_sample(path, modalities=self.modalities or None)
        except DataError as error:
            return error


def watch_folder(
    folder: str | Path,
    directory: str | Path,
    *,
    out: str | Path | None = None,
    json: str | Path | None = None,
    on_line: Callable[[dict[str, Any], Sample | None, Prediction | None], object] | None = None,
    on_ready: Callable[[], object] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    settle: float = SETTLE,
    patience: float = PATIENCE,
) -> None:
    """Score every part that is written into a folder, with a warm model, until `stop()`; a bad part is told and does not end it.

    Each part gives one row. Rows are appended to `json` (by default `out`/watch.jsonl); a part that stands there is not scored again
    after a restart, unless its files changed.

    Args:
        folder: a saved model.
        directory: watched, with all folders below it.
        out: keeps watch.jsonl, and what `on_line` puts beside it.
        json: file of lines.
        on_line: called with each row, and with sample and prediction where the part was scored, before the row is kept.
        on_ready: called once the model is warm, before the first look at the folder.
        stop: asked between parts.
        settle: seconds without a change after which a file counts as written.
        patience: seconds without a change after which a part that does not decode or lacks a modality is told as an error.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: a transductive method.
        DataError: there is no such folder.
        StorageError: the lines cannot be written.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"expected a folder to watch at {directory}, found {'a file' if directory.exists() else 'nothing'}; make it first")
    detector = load_detector(folder)
    require_ready(detector)
    lines = require_writable_file(json) if json is not None else require_writable(out) / "watch.jsonl" if out is not None else None
    modalities = tuple(getattr(detector.config, "modalities", None) or detector.needs.inputs)
    watcher = Watcher(directory, modalities, settle, patience)
    watcher.skip(files.read_lines(lines) if lines is not None else [])
    warm_up(detector)
    on_ready()
    while not stop():
        for name, stamp, found in watcher.poll():
            outcome = Outcome(error=found) if isinstance(found, DataError) else score_one(detector, found)
            row: dict[str, Any] = {"part": name, "error": None, "heatmap": None, "stamp": stamp}
            if outcome.sample is not None and outcome.prediction is not None:
                row |= describe_row(outcome.sample, outcome.prediction, outcome.milliseconds)
                if out is not None:
                    row["heatmap"] = f"heatmaps/{file_stem(name)}.png"
            else:
                row["error"] = str(outcome.error)
            if on_line is not None:
                on_line(row, outcome.sample, outcome.prediction)
            if lines is not None:
                files.append_line(lines, row)
            if stop():
                return
        time.sleep(POLL)
