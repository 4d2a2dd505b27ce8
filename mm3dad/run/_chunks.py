"""Samples scored in chunks by workers: each chunk is kept when it is done, so that an interrupted call goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from mm3dad import __version__, files
from mm3dad.data.records import Record
from mm3dad.data.single import find_record, read_sample
from mm3dad.errors import ConfigError, Mm3dadError
from mm3dad.methods import Detector, load_detector
from mm3dad.run._lock import held
from mm3dad.run._manifest import JOURNAL
from mm3dad.run._pool import Workers, run_parallel
from mm3dad.run.maps import file_stem, make_maps
from mm3dad.run.outcomes import predict_each, predict_set
from mm3dad.run.progress import track
from mm3dad.run.rows import describe_row
from mm3dad.types import Prediction, Sample

CHUNK = 16  # samples that a worker scores at a time: few are done again after a loss, and starting one costs little beside them
Found = tuple[int, dict[str, Any] | str]
OnSample = Callable[[Sample, Prediction, dict[str, Any]], object]


def score_inputs(
    detector: Detector, paths: Sequence[Path], name: Callable[[int, Sample], str], out: Path | None, on_sample: OnSample | None
) -> Iterator[Found]:
    """Score and keep what the paths name, in order: the position of each with its row, or with the reason why there is none.

    Args:
        detector: fitted.
        paths: one for each sample.
        name: gives the sample at a position the id that it is kept under.
        out: where maps/*.safetensors go; None keeps nothing.
        on_sample: called with each sample, its prediction and its row.
    """
    modalities = getattr(detector.config, "modalities", None)
    readers = [partial(read_sample, path, modalities=modalities) for path in paths]
    predict = predict_set if "transductive" in detector.needs.settings else predict_each
    for position, outcome in enumerate(predict(detector, readers)):
        if outcome.error is not None or outcome.sample is None or outcome.prediction is None:
            yield position, str(outcome.error)
            continue
        row = describe_row(outcome.sample, outcome.prediction, outcome.milliseconds)
        row["id"] = name(position, outcome.sample)
        if out is not None:
            row["file"] = f"maps/{file_stem(row['id'])}.safetensors"
            files.write_tensors(out / row["file"], make_maps(outcome.prediction, outcome.sample.mask, outcome.sample.size))
        if on_sample is not None:
            on_sample(outcome.sample, outcome.prediction, row)
        yield position, row


def score_chunks(
    detector: Detector, folder: str | Path, paths: Sequence[Path], out: Path | None, on_sample: OnSample | None, workers: Workers
) -> Iterator[Found]:
    """Do what `score_inputs` does by workers; chunks that an earlier call finished are taken from `out`.

    Args:
        detector: of the folder.
        folder: the saved model, which each worker opens.
        paths: one for each sample.
        out: keeps maps, and the rows of finished chunks until all are.
        on_sample: a function of a module, called in the worker.
        workers: as `run_parallel` takes them.

    Raises:
        ConfigError: no `out`, or a method that scores the set as a whole.
    """
    if out is None:
        raise ConfigError("workers keep what they score, and there is no folder for it; give --out")
    if "transductive" in detector.needs.settings:
        raise ConfigError(f"{detector.name} scores a set as a whole, which workers cannot share; leave out --workers")
    seal = files.sha256_file(Path(folder) / "model.json")
    named: list[tuple[int, Path, str, Record]] = []
    taken: set[str] = set()
    with held(out, "", "maps", JOURNAL):
        for position, path in enumerate(paths):
            try:
                record = find_record(path)
            except Mm3dadError as error:
                yield position, str(error)
                continue
            named.append((position, path, unique_name(record.id, taken), record))
        jobs, kept = [], []
        for first in range(0, len(named), CHUNK):
            chunk = named[first : first + CHUNK]
            note = out / JOURNAL / f"{_identify(seal, chunk)}.json"
            found = _read_note(note, out)
            if found is None:
                jobs.append((str(folder), seal, [(position, path, name) for position, path, name, _ in chunk], out, note, on_sample))
            else:
                kept.append(found)
        for found in kept:
            yield from found
        names = [f"the chunk of {job[2][0][1]}" for job in jobs]
        gpus = int(str(getattr(detector.config, "device", "cpu")) != "cpu")
        title = f"predict ({CHUNK} samples at a time)"
        for found in track(run_parallel(_score_chunk, jobs, workers, names=names, shared=out, gpus=gpus), title, len(jobs)):
            yield from found
        for note in (out / JOURNAL).glob("*.json"):
            note.unlink()
        if (out / JOURNAL).is_dir():
            (out / JOURNAL).rmdir()


def _identify(seal: str, chunk: Sequence[tuple[int, Path, str, Record]]) -> str:
    """Return what stands for a chunk's result: the model, the samples' ids and the state of their files."""
    states = []
    for position, path, name, record in chunk:
        found = [Path(file).stat() for _, file in sorted(record.paths.items())]
        states.append([position, str(path), name, [[state.st_size, state.st_mtime_ns] for state in found]])
    return hashlib.sha256(json.dumps([__version__, seal, states]).encode()).hexdigest()[:32]


def _read_note(note: Path, out: Path) -> list[Found] | None:
    """Return what a finished chunk gave, None where it is to be done."""
    if not note.is_file():
        return None
    found = [(int(position), row) for position, row in files.read_json(note)]
    return found if all((out / row["file"]).is_file() for _, row in found) else None


@lru_cache(maxsize=1)
def _open_model(folder: str, seal: str) -> Detector:
    """Keep the model from one chunk to the next; another `seal`, another model."""
    return load_detector(folder)


def _score_chunk(
    folder: str, seal: str, chunk: list[tuple[int, Path, str]], out: Path, note: Path, on_sample: OnSample | None
) -> list[Found]:
    """Score a chunk in a worker; what failed is tried again by the next call, so only whole chunks are noted."""
    detector = _open_model(folder, seal)
    paths = [path for _, path, _ in chunk]
    scored = score_inputs(detector, paths, lambda position, _: chunk[position][2], out, on_sample)
    found = [(chunk[position][0], result) for position, result in scored]
    if not any(isinstance(result, str) for _, result in found):
        files.write_json(note, found)
    return found


def unique_name(name: str, taken: set[str]) -> str:
    """Return an id that is not taken yet: inputs from different trees may share one, which then gets a number."""
    chosen, count = name, 1
    while chosen in taken:
        count += 1
        chosen = f"{name}-{count}"
    taken.add(chosen)
    return chosen
