from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, TrainingError
from mm3dad.methods._stretched import draw_defects, measure_box
from mm3dad.types import Sample
from tests.methods.parts import make_cloud, make_sample, make_samples

SMALL = {"cells": 24, "max_points": 2000, "epochs": 3, "steps": 5, "batch": 2}


def create(**options):
    return mm3dad.create("vote3deep", **SMALL | options)


@pytest.fixture(scope="module")
def fitted():
    return create().fit(make_samples(6, modalities=("xyz",)))


def test_the_loss_falls_and_no_bias_rises_above_zero(fitted):
    history = fitted.training.histories["vote3deep"]
    assert set(history.rows[0]) == {"hinge", "sparsity", "loss", "validation"}
    assert history.rows[-1]["loss"] < 0.8 * history.rows[0]["loss"] and history.best > 0
    assert all(bool((layer.bias <= 0).all()) for layer in (*fitted._net.hidden, fitted._net.head))
    untrained = create(epochs=0).fit(make_samples(6))
    assert not untrained.training.histories and float(untrained._box.min()) > 0


def test_a_box_lies_around_the_dent(fitted):
    hits = 0
    for seed in range(60, 66):
        sample = make_sample(seed, "dent")
        prediction = fitted.predict(sample)
        corners, scores = prediction.parts["boxes"], prediction.parts["box_scores"]
        assert corners.shape == (len(scores), 8, 3) and len(scores) <= fitted.config.boxes
        assert bool((scores.diff() <= 0).all()) and bool((scores > fitted._box_threshold).all())
        middle = sample.xyz[:, sample.mask & sample.valid].mean(1)
        # In the frame of the boxes a point is inside where it lies between the corners on every axis.
        axes = fitted._look(sample).axes
        if len(scores):
            low, high = (corners[0] @ axes.T).aminmax(dim=0)
            hits += bool(((middle @ axes.T >= low) & (middle @ axes.T <= high)).all())
    assert hits >= 4
    assert not len(create(boxes=0, epochs=1).fit(make_samples(2)).predict(make_sample(60, "dent")).parts["boxes"])


def test_either_score_alone_and_their_sum(fitted, monkeypatch):
    maps = {}
    for scores in (("bank",), ("head",), ("bank", "head")):
        monkeypatch.setattr(fitted, "config", replace(fitted.config, scores=scores, smooth=0.0))
        good, bad = fitted.predict_all([make_sample(60), make_sample(61, "dent")])
        assert bad.score > good.score
        maps[scores] = bad.map
    torch.testing.assert_close(maps["bank", "head"], maps["bank",] + maps["head",], atol=1e-4, rtol=1e-4)


def test_clouds_without_a_grid():
    detector = create(epochs=2).fit([make_cloud(seed, 1500) for seed in range(4)])
    good, bad = detector.predict(make_cloud(60, 1500)), detector.predict(make_cloud(61, 1500, defect="dent"))
    assert good.map.shape == (1, 1500) and bad.score > good.score


def test_few_samples_and_thresholds():
    one = create(epochs=1).fit(make_samples(1))
    assert one.predict(make_sample(60)).threshold is None and math.isfinite(one.predict(make_sample(60)).score)
    judged = create(epochs=1).fit(make_samples(3), validation=make_samples(2, first=20))
    assert judged.predict(make_sample(60)).calibrated


def test_drawn_defects_mark_the_cells_that_moved_most():
    cloud = make_sample(0).xyz.flatten(1).T[10:].contiguous()
    size = 0.002
    voxels, target = draw_defects(cloud, size, torch.Generator().manual_seed(0))
    again, same = draw_defects(cloud, size, torch.Generator().manual_seed(0))
    assert torch.equal(voxels.features, again.features) and torch.equal(target, same)
    assert set(target.tolist()) == {-1, 0, 1} and int((target == 1).sum()) < 0.1 * len(target)
    assert float(voxels.features[target == 1, 6].abs().mean()) > 3 * float(voxels.features[target == 0, 6].abs().mean())
    sides = measure_box([cloud], torch.Generator().manual_seed(0))
    assert sides.shape == (3,) and 0.002 < float(sides.min()) <= float(sides.max()) < 0.03


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scores": "vote"}, "scores must be of bank, head"),
        ({"scores": ""}, "scores must be of bank, head"),
        ({"cells": 2}, "cells must lie in"),
        ({"rate": 0}, "rate must lie in"),
    ],
)
def test_settings_out_of_range(options, words):
    with pytest.raises(ConfigError, match=words):
        create(**options)


def test_bad_samples(fitted):
    with pytest.raises(DataError, match="has no xyz, and vote3deep sees points alone"):
        fitted.predict(make_sample(60, modalities=("rgb",)))
    with pytest.raises(DataError, match="has 0 valid points on the part"):
        fitted.predict(Sample(xyz=torch.zeros(3, 20, 20)))


@pytest.mark.parametrize("layer", ["head", "hidden.0"])
def test_a_training_that_diverges_is_named(layer):
    detector = create()
    clouds = [sample.xyz.flatten(1).T[sample.valid.flatten()] for sample in make_samples(2)]
    detector._size = 0.003
    detector._net.get_submodule(layer).weight.data.fill_(math.inf)
    with pytest.raises(TrainingError, match="training diverged in epoch 1: the loss became nan"):
        detector._train(clouds, [], lambda *_: None)
