from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, TrainingError
from tests.methods.parts import make_cloud, make_sample, make_samples

SMALL = {"side": 16, "patch": 8, "widths": (8, 8), "epochs": 1, "batch": 2, "trees": 10}


def create(**options):
    return mm3dad.create("radar", **SMALL | options)


@pytest.fixture(scope="module")
def fitted():
    return create().fit(make_samples(5))


@pytest.mark.parametrize("options", [{"reading": "residual", "noises": 1}, {"reading": "residual"}, {"edges": True}])
def test_a_reading_changes_the_map_alone(fitted, options):
    other = create(**options).fit(make_samples(5))
    assert all(torch.equal(value, other._net.state_dict()[key]) for key, value in fitted._net.state_dict().items())
    assert not torch.equal(other.predict(make_sample(60)).map, fitted.predict(make_sample(60)).map)


@pytest.mark.parametrize("names", ["rgb", "xyz"])
def test_one_modality_alone(names):
    detector = create(modalities=(names,)).fit(make_samples(3, modalities=(names,)))
    prediction = detector.predict(make_sample(60))
    assert set(prediction.parts) == {f"{names}_map"} and torch.equal(prediction.map, prediction.parts[f"{names}_map"])
    assert torch.equal(detector.predict(make_sample(60, modalities=(names,))).map, prediction.map)
    assert create().fit(make_samples(2, modalities=(names,)))._names == (names,)


def test_the_picture_stands_in_units_of_the_normal_ones(fitted):
    pictures = torch.stack([(fitted._picture(sample) - fitted._shift) / fitted._spread for sample in make_samples(5)])
    torch.testing.assert_close(pictures.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(pictures.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_validation_sets_the_threshold_and_one_sample_gives_none(fitted):
    assert fitted.predict(make_sample(60)).calibrated
    judged = create().fit(make_samples(2), validation=make_samples(2, first=20))
    assert judged._threshold == max(one.score for one in judged.predict_all(make_samples(2, first=20)))
    assert create().fit(make_samples(1)).predict(make_sample(60)).threshold is None


def test_bad_samples(fitted):
    sample = make_sample(60)
    with pytest.raises(DataError, match="has no xyz, and radar learned rgb and xyz; complete it, or fit with modalities=rgb"):
        fitted.predict(replace(sample, xyz=None, valid=None))
    with pytest.raises(DataError, match="has no valid point"):
        fitted.predict(replace(sample, valid=torch.zeros_like(sample.valid), xyz=torch.zeros_like(sample.xyz)))
    with pytest.raises(DataError, match="a cloud without a grid"):
        create(modalities=("xyz",)).fit([make_cloud(1)])
    one = torch.zeros_like(sample.valid)
    one[20, 20] = True
    assert fitted.predict(replace(sample, valid=one, xyz=sample.xyz * one)).score >= 0
    assert create().fit([replace(sample, rgb=torch.full_like(sample.rgb, 0.5))]).predict(sample).score >= 0


def test_a_training_that_diverges_is_named():
    detector = create()
    with torch.no_grad():
        detector._net.net.conv_out.bias.fill_(torch.nan)
    with pytest.raises(TrainingError, match="training diverged in epoch 1: the loss became nan"):
        detector._train(torch.zeros(2, 4, 16, 16), torch.zeros(0, 4, 16, 16), lambda *_: None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch": 9}, r"divisible by 2\^\(levels - 1\) = 2 and at most side = 16, got 9"),
        ({"patch": 18}, "at most side = 16, got 18"),
        ({"step": 1000}, "step must lie in 0 to 999"),
        ({"modalities": ("depth",)}, "modalities must be of rgb, xyz"),
        ({"reading": "noisy"}, "reading must be one of clean, residual"),
        ({"widths": (8, 12)}, "multiples of 8"),
    ],
)
def test_settings_out_of_range(options, words):
    with pytest.raises(ConfigError, match=words):
        create(**options)
