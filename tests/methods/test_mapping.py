"""cfm and mentor3ad beyond the contract: what can go wrong, resuming, the published form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, ModelError, TrainingError
from mm3dad.nets.training import TrainingRun
from tests.methods.parts import SMALL, make_cloud, make_sample, make_samples

METHODS = ("cfm", "mentor3ad")
SHORT = {**SMALL, "epochs": 2, "hidden": 0}


class CutOffError(Exception):
    pass


def create(name, **options):
    return mm3dad.create(name, **{**SHORT, **options})


def weights(detector):
    return detector._state()[0]


@pytest.mark.parametrize("name", METHODS)
def test_one_sample_trains_and_has_no_threshold(name):
    detector = create(name).fit(make_samples(1))
    prediction = detector.predict(make_sample(50))
    assert prediction.score > 0 and prediction.threshold is None and not prediction.calibrated
    assert all(history.start is None for history in detector.training.histories.values())


@pytest.mark.parametrize("name", METHODS)
def test_validation_sets_the_threshold(name):
    validation = make_samples(2, first=30)
    detector = create(name).fit(make_samples(4), validation=validation)
    assert detector.predict(validation[0]).threshold == max(detector.predict(sample).score for sample in validation)


@pytest.mark.parametrize(("name", "stage"), [("cfm", "mapping"), ("mentor3ad", "mentor"), ("mentor3ad", "guided")])
def test_an_interrupted_fit_goes_on_to_the_same_model(tmp_path, name, stage):
    samples = make_samples(4)
    whole = create(name).fit(samples)
    cut = create(name)
    cut.training = TrainingRun(tmp_path)

    def stop(text, done, total):
        if stage in text and done >= total / 2:
            raise CutOffError

    with pytest.raises(CutOffError):
        cut.fit(samples, progress=stop)
    assert not cut.is_fitted
    resumed = create(name)
    resumed.training = TrainingRun(tmp_path)
    resumed.fit(samples)
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(resumed).items())
    wider = create(name, rate=2e-3)
    wider.training = TrainingRun(tmp_path)
    with pytest.raises(ModelError, match=r"rate = 0.001, this one has 0.002"):
        wider.fit(samples)


def test_a_rate_that_is_too_high_is_named():
    with pytest.raises(TrainingError, match="learning rate"):
        create("cfm", rate=1e15).fit(make_samples(4))


@pytest.mark.parametrize("name", METHODS)
def test_samples_that_cannot_be_used(name):
    sample = make_sample(0)
    with pytest.raises(DataError, match="has no xyz, and .* compares both; complete it, or use duet"):
        create(name).fit([replace(sample, xyz=None, valid=None)])
    with pytest.raises(DataError, match="has no valid point"):
        create(name).fit([replace(sample, valid=torch.zeros_like(sample.valid))])
    cloud = make_cloud(0)
    with pytest.raises(DataError, match="has no rgb"):
        create(name).fit([cloud])
    with pytest.raises(DataError, match="without a grid"):
        create(name).fit([replace(cloud, rgb=torch.rand(3, 1, cloud.size[1]), valid=None)])


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [("cfm", {"rate": 0.0}, "option rate"), ("cfm", {"depth": 1}, "option depth"), ("mentor3ad", {"mentor": 0}, "option mentor"),
     ("mentor3ad", {"reference": True}, "no code of it is public")],
)  # fmt: skip
def test_options_out_of_range(name, option, message):
    with pytest.raises(ConfigError, match=message):
        create(name, **option)


def test_a_gap_in_the_cloud_scores_nothing():
    detector = create("cfm", fineness=2).fit(make_samples(3))
    sample = make_sample(50)
    valid = sample.valid.clone()
    valid[:, :40] = False
    heat = detector.predict(replace(sample, valid=valid, xyz=sample.xyz)).map
    assert float(heat[:, :16].max()) == 0 < float(heat[:, 50:].min())


def test_an_anchor_keeps_the_direction_of_ordinary_cells():
    """Around the mean of all cells a direction is noise; a constant channel holds it, and is the last one of both features."""
    samples = make_samples(3)
    detector = create("cfm", anchor=1.0).fit(samples)
    described = detector._source.describe(samples[0])
    plain, found = described.rescale(detector._scale), detector._bring_to_scale(described)
    for name in ("rgb", "xyz"):
        rows = getattr(found, name)
        assert torch.equal(rows[:, :-1], getattr(plain, name)) and bool((rows[:, -1] == 1).all())
    bare = create("cfm").fit(samples)
    assert torch.equal(bare._bring_to_scale(described).rgb, plain.rgb)


def test_the_published_form_leaves_features_and_place_alone():
    detector = create("cfm", reference=True).fit(make_samples(3))
    assert detector._place((3, 3)).shape == (9, 0)
    for shift, factor in detector._scale.values():
        assert not bool(shift.any()) and bool((factor == 1).all())
    prediction = detector.predict(make_sample(50))
    assert 0 <= prediction.score < float("inf")
    # Divided by its own mean, a map says nothing of how bad a part is, only where.
    assert float(prediction.map.mean()) == pytest.approx(1, abs=0.1)


def test_ours_knows_how_bad_a_part_is():
    detector = mm3dad.create("cfm", **SMALL).fit(make_samples(6))
    good, bad = (detector.predict(make_sample(60, defect)) for defect in (None, "both"))
    assert bad.score > 2 * good.score and float(bad.map.max()) > 2 * float(good.map.max())
