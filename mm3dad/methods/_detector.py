"""The contract of every method: configure, fit, predict, save, load."""

from __future__ import annotations

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import mm3dad
from mm3dad import files
from mm3dad.errors import ConfigError, DataError, ModelError, nearest_name
from mm3dad.methods._judged import keep_point
from mm3dad.nets.task import TrainingRun
from mm3dad.registry import METHODS
from mm3dad.scoring import OperatingPoint
from mm3dad.types import Prediction, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from mm3dad.methods.explanation import Explanation
    from mm3dad.nets.graph import Graph

FORMAT = 1  # of model.json and its tensors; raised when an older reader would misread them. tests/frozen keeps a model of each
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a method asks of its data.

    Args:
        inputs: modalities it can use, a subset of ("rgb", "xyz").
        settings: the settings it works in, of ("one-class", "few-shot", "multi-class", "auxiliary", "transductive").
        trains: fitting runs gradient steps, under some settings at least.
    """

    inputs: tuple[str, ...]
    settings: tuple[str, ...]
    trains: bool = False


def _convert(name: str, kind: Any, value: Any) -> Any:
    """Bring an option to the type its field declares; text comes from the command line."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        kind = next(item for item in arguments if item is not type(None))
        return _convert(name, kind, value)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"option {name} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        items = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if not isinstance(items, Iterable):
            items = [items]
        return tuple(_convert(name, arguments[0], item) for item in items)
    if kind is bool:
        known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
        if isinstance(value, str) and value.lower() in known:
            return known[value.lower()]
        if isinstance(value, bool):
            return value
        raise ConfigError(f"option {name} must be true or false, got {value!r}")
    if kind in (int, float):
        try:
            number = float(value)
            if isinstance(value, bool) or (kind is int and number != int(number)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"option {name} must be {'a whole number' if kind is int else 'a number'}, got {value!r}") from None
        return kind(number)
    if kind is str and not isinstance(value, str):
        raise ConfigError(f"option {name} must be text, got {value!r}")
    return value


def resolve_config(config_type: type, options: dict[str, Any]) -> Any:
    """Make a `Config` from options given in Python, JSON or as command-line text.

    Raises:
        ConfigError: an unknown option (the nearest known one is named) or a value of the wrong kind.
    """
    kinds = typing.get_type_hints(config_type)
    for name in options:
        if name not in kinds:
            raise ConfigError(f"unknown option {name!r}; {nearest_name(name, kinds)}")
    return config_type(**{name: _convert(name, kinds[name], value) for name, value in options.items()})


class Detector(ABC):
    """Base of all methods. Subclasses set `name`, `Config`, `needs` and fill the four hooks below.

    `Config` is a frozen dataclass; each field carries its help line in `field(metadata={"help": ...})`.
    Raw scores are >= 0 and higher is worse. `fit` and `predict` neither print nor write files.
    `operating_point` (of `mm3dad calibrate`) overrules the method's own threshold in every prediction, until the next fit.

    Raises:
        ConfigError: unknown option or value out of range.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    needs: ClassVar[Needs]
    _threshold: float | None = None  # of the image score, where a method has one for all samples

    def __init__(self, **options: Any) -> None:
        self.config = resolve_config(self.Config, options)
        self.is_fitted = False
        self.operating_point: OperatingPoint | None = None
        self.training = TrainingRun()  # where a training leaves checkpoints and curves; run/ sets it before `fit`

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        keep_point(cls)

    @abstractmethod
    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Detector:
        """Learn from normal samples, each read when it is needed.

        Args:
            samples: a sequence (a `Dataset`, a list) of normal samples.
            progress: called with (stage, done, total).
            validation: further normal samples; they may set the threshold and nothing else.
        Raises:
            DataError: no sample, or samples the method cannot use.
        """

    @abstractmethod
    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Score samples that fit into memory together; each score is that of the sample alone."""

    @abstractmethod
    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (tensors by name, plain JSON values) from which `_restore` rebuilds the fitted detector."""

    @abstractmethod
    def _restore(self, tensors: dict[str, Any], values: dict[str, Any]) -> None:
        """Take back what `_state` gave."""

    def predict(self, sample: Sample) -> Prediction:
        """Score one sample.

        Raises:
            DataError: the sample lacks a modality the method cannot do without.
            ModelError: the detector is not fitted.
        """
        if not isinstance(sample, Sample):
            raise DataError(f"predict takes a mm3dad.Sample, got {type(sample).__name__}; build one with Sample(rgb=..., xyz=...)")
        return self.predict_batch([sample])[0]

    def predict_all(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Score a whole set; the same as one by one unless the method is transductive."""
        return [self.predict(sample) for sample in samples]

    def explain(self, sample: Sample) -> Explanation:
        """Return why a sample has its scores, to be asked place by place; optional, a method may have no answer.

        Raises:
            ConfigError: the method explains nothing.
            DataError, ModelError: as `predict`.
        """
        raise ConfigError(f"{self.name} does not explain its scores; give a model of duet, or look at the maps without a model")

    def describe_normals(self) -> dict[str, Tensor]:
        """Return what held-out normal samples scored, by the names of `Prediction.parts`, each (n,); optional.

        Raises:
            ConfigError: the method keeps nothing of the kind.
            ModelError: not fitted.
        """
        raise ConfigError(f"{self.name} keeps no scores of its normal samples to compare others with; give a model of duet")

    def graphs(self, size: tuple[int, int]) -> list[Graph]:
        """Return the networks that make the features of samples of (H, W) pixels, for `mm3dad export`; optional.

        Raises:
            ConfigError: the method has none that can leave it.
        """
        raise ConfigError(f"{self.name} has no extractor that can be exported; export a model of duet")

    def _set_threshold(self, validation: Sequence[Sample] | None, report: Progress, held: Iterable[float]) -> None:
        """Choose the one threshold from validation samples; without any, from held-out scores, which are asked for only then."""
        import torch

        from mm3dad.scoring.calibrate import threshold_for_rate

        scores = score_validation(validation, report, lambda sample: self.predict(sample).score) or list(held)
        self._threshold = threshold_for_rate(torch.tensor(scores), self.config.false_alarms) if scores else None

    def _conclude(self, sample: Sample, score: float, pixels: Tensor, parts: dict[str, Tensor] | None = None) -> Prediction:
        """Return the prediction of a method with one threshold; without one it says neither good nor defective."""
        threshold = self._threshold
        flag = None if threshold is None else score > threshold
        return Prediction(score, pixels, parts or {}, threshold, flag, threshold is not None, sample.meta)

    @property
    def bank_bytes(self) -> int:
        """Bytes of the tensors a fitted detector keeps."""
        self._require_fit()
        return sum(value.numel() * value.element_size() for value in self._state()[0].values())

    @property
    def weights(self) -> list[dict[str, Any]]:
        """Name, sha256 and licence of every pretrained weight file in use."""
        return []

    def _require_fit(self) -> None:
        if not self.is_fitted:
            raise ModelError(f"{self.name} is not fitted; call fit(samples) or mm3dad.load(folder) first")

    def save(self, folder: str | Path) -> Path:
        """Write the fitted detector: tensors.safetensors, then model.json that seals it with its sha256.

        Raises:
            ModelError: not fitted.
            StorageError: the folder cannot be written; an older model in it stays loadable.
        """
        self._require_fit()
        folder = Path(folder)
        tensors, values = self._state()
        model = {
            "format": FORMAT,
            "mm3dad": mm3dad.__version__,
            "method": self.name,
            "config": dataclasses.asdict(self.config),
            "weights": self.weights,
            "values": values,
            "operating_point": None if self.operating_point is None else self.operating_point.to_dict(),
        }
        files.write_sealed(folder / "model.json", model, tensors)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Detector:
        """Load a detector of this class; `mm3dad.load` finds the class by itself."""
        detector = load_detector(folder)
        if not isinstance(detector, cls):
            raise ModelError(f"{folder} holds a {detector.name!r} model, expected {cls.name!r}; use mm3dad.load(folder)")
        return detector


def score_validation(validation: Sequence[Sample] | None, report: Progress, score: Callable[[Sample], float]) -> list[float]:
    """Return the image scores of the validation samples, each read when it is needed; [] without any."""
    scores: list[float] = []
    if validation is None:
        return scores
    for number in range(len(validation)):
        report("validation", number, len(validation))
        scores.append(score(validation[number]))
    return scores


def strip_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name begins with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def load_detector(folder: str | Path) -> Detector:
    """Load what `Detector.save` wrote.

    Raises:
        ModelError: missing, damaged, or written by a newer format version.
    """
    folder = Path(folder)
    if not (folder / "model.json").is_file():
        raise ModelError(f"expected a saved model (model.json) in {folder}, found none; make one with `mm3dad fit`")
    try:
        model = files.read_json(folder / "model.json")
        version, method = model["format"], model["method"]
        options, seal, values = model["config"], model["tensors"], model["values"]
        point = model.get("operating_point")
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / 'model.json'} is damaged or foreign ({error}); fit and save the model again") from error
    if not isinstance(version, int) or version > FORMAT:
        raise ModelError(f"{folder} has format {version}, this version reads up to {FORMAT}; update mm3dad, or fit again")
    if method not in METHODS.names():
        raise ModelError(f"{folder} holds a model of the unknown method {method!r}; {nearest_name(method, METHODS.names())}")
    try:
        detector = METHODS.get(method)(**options)
    except (ConfigError, TypeError) as error:
        raise ModelError(f"{folder} has a configuration this version does not know ({error}); fit again") from error
    try:
        detector._restore(files.read_sealed(folder / "model.json", seal), values)
    except (ConfigError, DataError, ModelError):
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:  # torch's are RuntimeErrors
        raise ModelError(f"{folder} lacks a part of a {method} model ({error}); fit and save it again") from error
    detector.is_fitted = True
    detector.operating_point = None if point is None else OperatingPoint.from_dict(point)
    return detector
