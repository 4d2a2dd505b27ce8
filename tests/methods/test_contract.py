"""The contract of every method, over `list_methods()` without a skip list."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.methods import Detector, Needs
from mm3dad.metrics import auroc
from mm3dad.registry import METHODS
from mm3dad.types import Prediction
from tests.methods.parts import SHORT, SMALL, make_sample, make_samples

# Other test files register methods of their own; the contract is that of the package's.
NAMES = [name for name in mm3dad.list_methods() if type(mm3dad.create(name)).__module__.startswith("mm3dad.")]


def create(name):
    """A detector at a small size; a method takes of the small settings those it has."""
    known = {field.name for field in dataclasses.fields(METHODS.get(name).Config)}
    small = {key: value for key, value in {**SMALL, "point_side": 24}.items() if key in known}
    return mm3dad.create(name, **small | SHORT.get(name, {}))


def make_training(name):
    """What a method is fitted on: normal samples, or a labelled set of other products."""
    if "auxiliary" not in METHODS.get(name).needs.settings:
        return make_samples(6)
    good, bad = (make_samples(6, category="disc", defect=defect) for defect in (None, "both"))
    labelled = [sample for pair in zip(good, bad, strict=True) for sample in pair]
    return labelled + make_samples(4) if "few-shot" in METHODS.get(name).needs.settings else labelled


def is_transductive(detector):
    return "transductive" in detector.needs.settings


def score_one(detector, sample):
    """The prediction of one sample: alone, or among normal samples of its size where a method judges a set."""
    if not is_transductive(detector):
        return detector.predict(sample)
    return detector.predict_all([sample, *make_samples(3, first=90, size=sample.size)])[0]


@pytest.fixture(scope="module")
def normal():
    return make_samples(6)


@pytest.fixture(scope="module")
def tests():
    return [*make_samples(4, first=50), *make_samples(4, first=60, defect="both")]


@pytest.fixture(scope="module", params=NAMES)
def fitted(request):
    return create(request.param).fit(make_training(request.param))


@pytest.fixture(scope="module")
def predictions(fitted, tests):
    return fitted.predict_all(tests)


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a.score, a.threshold, a.is_anomaly, a.calibrated) == (b.score, b.threshold, b.is_anomaly, b.calibrated)
        assert torch.equal(a.map, b.map)
        assert a.parts.keys() == b.parts.keys() and all(torch.equal(a.parts[key], b.parts[key]) for key in a.parts)


def test_declares_itself(fitted):
    assert isinstance(fitted, Detector) and isinstance(fitted.needs, Needs) and fitted.name in NAMES
    assert fitted.needs.inputs and set(fitted.needs.inputs) <= {"rgb", "xyz"} and fitted.needs.settings
    config = type(fitted).Config
    assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen
    for field in dataclasses.fields(config):
        assert field.metadata.get("help"), f"{fitted.name}: option {field.name} has no help line"
        assert "\n" not in field.metadata["help"]
    assert all({"name", "sha256", "licence"} <= row.keys() for row in fitted.weights)
    assert (fitted.bank_bytes > 0) != is_transductive(fitted)  # a method that judges a set by itself keeps nothing


def test_finds_the_defects(predictions, tests):
    labels = torch.tensor([sample.label for sample in tests])
    assert auroc(torch.tensor([prediction.score for prediction in predictions]), labels) >= 0.9
    maps = torch.stack([prediction.map for prediction in predictions])
    assert auroc(maps.flatten(), torch.stack([sample.mask for sample in tests]).flatten().long()) >= 0.8


def test_predictions_are_well_formed(predictions, tests):
    for prediction, sample in zip(predictions, tests, strict=True):
        assert isinstance(prediction, Prediction) and isinstance(prediction.score, float) and prediction.score >= 0
        assert prediction.map.shape == sample.size and prediction.map.dtype == torch.float32
        assert bool(prediction.map.isfinite().all()) and float(prediction.map.min()) >= 0
        assert prediction.meta == sample.meta
        assert prediction.is_anomaly == (None if prediction.threshold is None else prediction.score > prediction.threshold)
        for name, part in prediction.parts.items():
            if name.endswith("_map"):
                assert part.shape == sample.size and float(part.min()) >= 0


def test_maps_follow_the_samples_size(fitted):
    for size in ((48, 96), (90, 70)):
        assert score_one(fitted, make_sample(70, size=size)).map.shape == size


def test_repeats_bit_for_bit_in_any_order_of_the_samples(fitted, predictions, tests):
    is_learned = fitted.needs.trains and "auxiliary" in fitted.needs.settings  # then the order is part of the training
    samples = make_training(fitted.name)
    assert_same(create(fitted.name).fit(samples if is_learned else samples[::-1]).predict_all(tests), predictions)


def test_survives_save_and_load(fitted, predictions, tests, tmp_path):
    assert fitted.save(tmp_path / "model") == tmp_path / "model"
    loaded = mm3dad.load(tmp_path / "model")
    assert type(loaded) is type(fitted) and loaded.config == fitted.config and loaded.bank_bytes == fitted.bank_bytes
    assert_same(loaded.predict_all(tests), predictions)
    assert loaded.weights == fitted.weights
    assert not [path for path in (tmp_path / "model").iterdir() if path.suffix not in (".json", ".safetensors")]


def test_a_batch_is_its_samples_one_by_one(fitted, tests):
    assert fitted.predict_batch([]) == []
    if is_transductive(fitted):
        for call in (lambda: fitted.predict(tests[0]), lambda: fitted.predict_batch(tests), lambda: fitted.predict_all(tests[:1])):
            with pytest.raises(DataError, match=r"transductive.*call predict_all\(samples\) with 2 or more"):
                call()
        return
    assert_same(fitted.predict_batch(tests), [fitted.predict(sample) for sample in tests])


def test_predicting_changes_nothing(fitted, predictions, tests):
    score_one(fitted, make_sample(80, "both"))
    assert_same(fitted.predict_all(tests[::-1]), predictions[::-1])


@pytest.mark.parametrize("missing", ["rgb", "xyz"])
def test_a_missing_modality_works_or_is_explained(fitted, missing):
    for defect in (None, "both"):
        sample = replace(make_sample(70, defect), **({"rgb": None} if missing == "rgb" else {"xyz": None, "valid": None}))
        try:
            prediction = score_one(fitted, sample)
        except DataError as error:
            assert missing in str(error) and ";" in str(error)
        else:
            assert prediction.score >= 0 and prediction.map.shape == sample.size


def test_progress_is_told(fitted):
    told = []
    create(fitted.name).fit(make_training(fitted.name)[:2], progress=lambda stage, done, total: told.append((stage, done, total)))
    assert told and all(isinstance(stage, str) and 0 <= done <= total for stage, done, total in told)


@pytest.mark.parametrize("name", NAMES)
def test_unfitted_unknown_and_empty(name, normal, tmp_path):
    detector = create(name)
    assert not detector.is_fitted
    for call in (lambda: detector.predict(normal[0]), lambda: detector.save(tmp_path), lambda: detector.bank_bytes):
        with pytest.raises(ModelError, match="not fitted; call fit"):
            call()
    assert not list(tmp_path.iterdir())
    if is_transductive(detector):
        assert detector.fit([]).is_fitted
    else:
        with pytest.raises(DataError, match="at least one normal sample, got none"):
            detector.fit([])
    with pytest.raises(ConfigError, match="unknown option 'no_such_option'; .*known: "):
        mm3dad.create(name, no_such_option=1)


def test_only_samples_are_scored(fitted):
    with pytest.raises(DataError, match=r"predict takes a mm3dad.Sample, got Tensor"):
        fitted.predict(torch.zeros(3, 8, 8))
