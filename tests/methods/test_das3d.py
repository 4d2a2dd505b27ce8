from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, TrainingError
from mm3dad.types import Sample
from tests.methods.parts import make_cloud, make_sample, make_samples

SMALL = {"side": 32, "width": 4, "levels": 2, "epochs": 1, "batch": 2}


def create(**options):
    return mm3dad.create("das3d", **SMALL | options)


@pytest.fixture(scope="module")
def fitted():
    return create().fit(make_samples(5))


def test_draws_are_normal_in_one_half_and_altered_where_the_mask_says():
    detector = create(side=48, levels=1)
    detector._scale = 100.0
    view = detector._view(make_sample(1))
    generator = torch.Generator().manual_seed(0)
    kinds = []
    for _ in range(300):
        rgb, altered, depth, moved, mask = detector._draw(view, [view], generator)
        coloured, shaped = (rgb != altered).any(0), depth != moved
        assert not bool(((coloured | shaped) & ~mask).any()) and float(moved.min()) >= 0 and float(moved.max()) <= 1
        kinds.append((bool(coloured.any()), bool(shaped.any())))
    for kind, share in (((False, False), 1 / 2), ((True, True), 1 / 6), ((True, False), 1 / 6), ((False, True), 1 / 6)):
        assert abs(kinds.count(kind) / 300 - share) < 4 * (share * (1 - share) / 300) ** 0.5 + 0.02


def test_training_lowers_the_loss_and_tells_its_terms():
    rows = create(epochs=3).fit(make_samples(3)).training.histories["das3d"].rows
    assert set(rows[0]) == {"focal", "dice", "rgb", "depth", "loss"} and rows[-1]["loss"] < rows[0]["loss"]


def test_validation_sets_the_threshold_and_one_sample_gives_none(fitted):
    assert fitted.predict(make_sample(60)).calibrated
    judged = create().fit(make_samples(2), validation=make_samples(2, first=20))
    assert judged._threshold == max(one.score for one in judged.predict_all(make_samples(2, first=20)))
    assert create().fit(make_samples(1)).predict(make_sample(60)).threshold is None


@pytest.mark.parametrize("missing", ["rgb", "xyz"])
def test_both_modalities_are_needed(fitted, missing):
    sample = make_sample(60, modalities=("xyz",) if missing == "rgb" else ("rgb",))
    with pytest.raises(DataError, match=f"has no {missing}, and das3d compares"):
        fitted.predict(sample)


def test_bad_samples(fitted):
    sample = make_sample(60)
    empty = torch.zeros(sample.size, dtype=torch.bool)
    with pytest.raises(DataError, match="has no valid point"):
        fitted.predict(replace(sample, valid=empty, xyz=torch.zeros_like(sample.xyz)))
    cloud = make_cloud(1)
    flat = Sample(rgb=torch.rand(3, 1, 400), xyz=cloud.xyz, meta=cloud.meta)
    with pytest.raises(DataError, match="a cloud without a grid"):
        fitted.predict(flat)
    one = empty.clone()
    one[20, 20] = True
    assert fitted.predict(replace(sample, valid=one, xyz=sample.xyz * one)).score >= 0


def test_a_rate_that_diverges_is_named():
    detector = create()
    with torch.no_grad():
        detector._nets["rgb"].last.bias.fill_(torch.nan)
    views = [detector._view(sample) for sample in make_samples(2)]
    with pytest.raises(TrainingError, match="training diverged in epoch 1: the loss became nan"):
        detector._train(views, [], lambda *_: None)


@pytest.mark.parametrize(
    ("options", "words"), [({"side": 36}, r"divisible by 2\^\(levels \+ 1\) = 8, got 36"), ({"width": 0}, "width must")]
)
def test_settings_out_of_range(options, words):
    with pytest.raises(ConfigError, match=words):
        create(**options)
