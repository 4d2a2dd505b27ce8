"""Score files and folders with a saved detector; one bad file never stops the others."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate

from mm3dad import files
from mm3dad.data.single import list_inputs, read_sample
from mm3dad.errors import DataError, Mm3dadError, ShapeError
from mm3dad.methods import Detector, load_detector
from mm3dad.run._arguments import require_writable, require_writable_file
from mm3dad.run.progress import track
from mm3dad.run.rows import describe_model, describe_row
from mm3dad.types import Prediction, Sample, SampleSequence

if TYPE_CHECKING:
    from torch import Tensor

GPU_BATCH = 8
MAP_PARTS = ("rgb_map", "xyz_map")
Reader = Callable[[], Sample]


@dataclass(frozen=True)
class Outcome:
    """What became of one input: a sample and its prediction, or the error that says why not.

    Args:
        milliseconds: wall time of the prediction, features included, file reading not.
    """

    sample: Sample | None = None
    prediction: Prediction | None = None
    error: Mm3dadError | None = None
    milliseconds: float = 0.0


@dataclass
class Predicted:
    """Result of `predict_inputs`: a row per scored sample, and (path, reason) per failure."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


def read_ahead(readers: Sequence[Reader]) -> Iterator[Sample | Mm3dadError]:
    """Yield what the readers return, in order, reading the next one while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(readers[0]) if readers else None
        for position in range(len(readers)):
            current = following
            following = pool.submit(readers[position + 1]) if position + 1 < len(readers) else None
            assert current is not None
            try:
                yield current.result()
            except Mm3dadError as error:
                yield error


def predict_each(detector: Detector, readers: Sequence[Reader]) -> Iterator[Outcome]:
    """Score samples as they are read: one by one on the CPU, in batches on a GPU; an error stays with its sample."""
    size = GPU_BATCH if str(getattr(detector.config, "device", "cpu")).startswith("cuda") else 1
    batch: list[Sample] = []
    for position, item in enumerate(read_ahead(readers)):
        if isinstance(item, Sample):
            batch.append(item)
        if batch and (len(batch) == size or position + 1 == len(readers) or not isinstance(item, Sample)):
            yield from _predict_batch(detector, batch)
            batch = []
        if not isinstance(item, Sample):
            yield Outcome(error=item)


class _OnAccess(SampleSequence):
    """The samples that these readers read."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._readers = list(readers)

    def __len__(self) -> int:
        return len(self._readers)

    def _read_at(self, position: int) -> Sample:
        return self._readers[position]()


def predict_set(detector: Detector, readers: Sequence[Reader]) -> Iterator[Outcome]:
    """Score a set by a transductive method; what cannot be read stays out of the set, an error of the set is every sample's."""
    errors = {position: item for position, item in enumerate(read_ahead(readers)) if not isinstance(item, Sample)}
    samples = _OnAccess([reader for position, reader in enumerate(readers) if position not in errors])
    start = time.perf_counter()
    failure: Mm3dadError | None = None
    predictions: Iterator[Prediction] = iter(())
    try:
        predictions = iter(detector.predict_all(samples))
    except Mm3dadError as error:
        failure = error
    spent = 1000 * (time.perf_counter() - start) / max(1, len(samples))
    for position, reader in enumerate(readers):
        error = errors.get(position, failure)
        if error is not None:
            yield Outcome(error=error)
            continue
        sample = reader()
        yield Outcome(sample, check_prediction(detector, sample, next(predictions)), None, spent)


def _predict_batch(detector: Detector, samples: list[Sample]) -> Iterator[Outcome]:
    start = time.perf_counter()
    try:
        predictions = detector.predict_batch(samples)
    except Mm3dadError as error:
        if len(samples) == 1:
            yield Outcome(sample=samples[0], error=error)
            return
        for sample in samples:
            yield from _predict_batch(detector, [sample])
        return
    spent = 1000 * (time.perf_counter() - start) / len(samples)
    for sample, prediction in zip(samples, predictions, strict=True):
        yield Outcome(sample, check_prediction(detector, sample, prediction), None, spent)


def check_prediction(detector: Detector, sample: Sample, prediction: Prediction) -> Prediction:
    """Hold a method to its contract: a map of the sample's size, finite numbers.

    Raises:
        ShapeError: the map has another size.
        DataError: the score or the map is not finite.
    """
    if tuple(prediction.map.shape) != sample.size:
        raise ShapeError(
            f"{detector.name} must return a map {sample.size} for {sample.meta.id!r}, got {tuple(prediction.map.shape)}; report it as a bug"
        )
    if not torch.isfinite(prediction.map).all() or not -float("inf") < prediction.score < float("inf"):
        raise DataError(f"{detector.name} gave no finite score for {sample.meta.id!r}; check the sample with `mm3dad doctor`")
    return prediction


def resize_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a score map (H, W) to (h, w) float32, bilinear; pixel centres stay in place."""
    values = values.detach().cpu().float()
    if tuple(values.shape) == tuple(size):
        return values
    return interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a ground truth (H, W) to (h, w) bool by the nearest pixel centre, so that no grey edge arises."""
    if tuple(mask.shape) == tuple(size):
        return mask.cpu()
    return interpolate(mask.cpu()[None, None].float(), size=size, mode="nearest-exact")[0, 0] > 0.5


def file_stem(name: str) -> str:
    """Turn a sample's id into a file name: the slashes of "test/hole/003" become "__"."""
    return (
        "".join("__" if letter == "/" else letter if letter.isalnum() or letter in "-_." else "_" for letter in name).lstrip(".")
        or "sample"
    )


def make_maps(prediction: Prediction, mask: Tensor | None, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return map, mask (where known) and the maps per modality at `size`, as they are kept on disk."""
    tensors = {"map": resize_map(prediction.map, size)}
    if mask is not None:
        tensors["mask"] = resize_mask(mask, size)
    for name in MAP_PARTS:
        if name in prediction.parts:
            tensors[name] = resize_map(prediction.parts[name], size)
    return tensors


def predict_inputs(
    folder: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path | None = None,
    json: str | Path | None = None,
    on_sample: Callable[[Sample, Prediction, dict[str, Any]], object] | None = None,
) -> Predicted:
    """Score every sample that the inputs name, and keep the results.

    Args:
        folder: a saved model.
        inputs: files, or folders whose samples are all taken; a file inside a dataset tree names the whole sample.
        out: where predictions.json, predict.json (model, versions, command) and maps/*.safetensors go, maps at the sample's own
            resolution; None keeps nothing.
        json: where the list of rows goes.
        on_sample: called with each sample, its prediction and its row, as they come.

    Returns:
        The rows, and the inputs that failed with the reason; what was scored before an interruption is on disk.

    Raises:
        ModelError: the model cannot be loaded.
        StorageError: the results cannot be written.
    """
    detector = load_detector(folder)
    out = require_writable(out) if out is not None else None
    if json is not None:
        require_writable_file(json)
    result = Predicted()
    paths: list[Path] = []
    for entry in inputs:
        try:
            paths.extend(list_inputs(entry))
        except Mm3dadError as error:
            result.failures.append((str(entry), str(error)))
    modalities = getattr(detector.config, "modalities", None)
    readers = [partial(read_sample, path, modalities=modalities) for path in paths]
    taken: set[str] = set()
    try:
        predict = predict_set if "transductive" in detector.needs.settings else predict_each
        for path, outcome in zip(track(paths, "predict"), predict(detector, readers), strict=True):
            if outcome.error is not None or outcome.sample is None or outcome.prediction is None:
                result.failures.append((str(path), str(outcome.error)))
                continue
            row = describe_row(outcome.sample, outcome.prediction, outcome.milliseconds)
            row["id"] = _unique(row["id"], taken)
            if out is not None:
                row["file"] = f"maps/{file_stem(row['id'])}.safetensors"
                files.write_tensors(out / row["file"], make_maps(outcome.prediction, outcome.sample.mask, outcome.sample.size))
            result.rows.append(row)
            if on_sample is not None:
                on_sample(outcome.sample, outcome.prediction, row)
    finally:
        if out is not None:
            files.write_json(out / "predictions.json", result.rows)
            command = shlex.join(["mm3dad", "predict", str(folder), *map(str, inputs), "--out", str(out)])
            failures = dict(result.failures)
            files.write_json(
                out / "predict.json",
                {"format": files.RESULT_FORMAT, **describe_model(detector, folder), "command": command, "failures": failures},
            )
        if json is not None:
            files.write_json(json, result.rows)
    return result


def _unique(name: str, taken: set[str]) -> str:
    """Return an id that is not taken yet: inputs from different trees may share one, which then gets a number."""
    chosen, count = name, 1
    while chosen in taken:
        count += 1
        chosen = f"{name}-{count}"
    taken.add(chosen)
    return chosen
