"""Score samples as they are read; an error stays with its sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from mm3dad.errors import DataError, Mm3dadError, ShapeError
from mm3dad.methods import Detector
from mm3dad.types import Prediction, Sample, SampleSequence

GPU_BATCH = 8
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
