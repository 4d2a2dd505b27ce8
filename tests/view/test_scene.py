from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mm3dad.errors import ShapeError
from mm3dad.types import Meta, Prediction, Sample
from mm3dad.view.colors import TRUTH, Scale
from mm3dad.view.scene import build_scene, resize_map
from tests.view.parts import make_map, make_sample


def test_maps_come_from_a_prediction_a_mapping_or_one_map(sample):
    scores = make_map(sample)
    prediction = Prediction(1.0, scores, {"xyz_map": scores * 2, "rgb_score": torch.tensor(3.0), "rgb_map": scores})
    assert list(build_scene(sample, prediction).maps) == ["map", "rgb_map", "xyz_map"]
    assert list(build_scene(sample, {"other": scores, "map": scores}).maps) == ["map", "other"]
    assert build_scene(sample, scores).map.dtype == np.float32
    assert build_scene(sample).map is None


def test_a_smaller_map_is_resized_and_stays_in_place(sample):
    scores = torch.zeros(10, 10)
    scores[2, 7] = 1
    resized = resize_map(scores, (40, 40))
    assert np.unravel_index(resized.argmax(), resized.shape)[0] in range(8, 12) and resized.argmax() % 40 in range(28, 32)
    assert np.allclose(resize_map(torch.full((7, 5), 2.5), (40, 40)), 2.5)


def test_nan_stays_nan_and_does_not_spread():
    scores = np.ones((4, 4), np.float32)
    scores[0, 0] = np.nan
    resized = resize_map(scores, (8, 8))
    assert np.isnan(resized[0, 0]) and np.isfinite(resized[4:, 4:]).all()


@pytest.mark.parametrize("shape", [(3, 4, 4), (4,), (0, 4), (1, 5)])
def test_wrong_maps_are_refused(shape):
    with pytest.raises(ShapeError, match="map"):
        resize_map(np.zeros(shape), (40, 40))


def test_thinning_keeps_arrays_together(sample):
    scene = build_scene(sample, make_map(sample), longest=15)
    assert scene.size == (14, 14) == scene.map.shape == scene.mask.shape == scene.valid.shape == scene.rgb.shape[1:]


def test_base_is_height_without_rgb(sample):
    blind = build_scene(dataclasses.replace(sample, rgb=None), make_map(sample))
    assert blind.base_picture().shape == (40, 40, 3) and blind.heat(Scale(0, 5)).shape == (40, 40, 3)


def test_truth_is_outlined_on_a_grid_and_painted_on_points(sample):
    assert (build_scene(sample).truth() == TRUTH).all(-1).any()
    flat = Sample(xyz=sample.xyz.reshape(3, 1, -1), mask=sample.mask.reshape(1, -1), meta=Meta(organised=False))
    scene = build_scene(flat)
    changed = (scene.truth() != scene.base_picture()).any(-1)
    assert (changed == scene.mask).all()
    assert (build_scene(make_sample(defect="good")).truth() == build_scene(make_sample(defect="good")).base_picture()).all()
