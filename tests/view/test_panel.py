from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mm3dad.errors import DataError, ShapeError
from mm3dad.types import Meta, Prediction, Sample
from mm3dad.view.colors import PAGE, Scale
from mm3dad.view.panel import GAP, draw_tiles, panel, stack_panels
from mm3dad.view.scene import build_scene
from tests.view.parts import make_map, make_sample


def test_panel_has_four_tiles_of_the_asked_size(sample):
    picture = panel(sample, make_map(sample), size=100, title="")
    assert picture.mode == "RGB" and picture.width == 4 * 100 + 5 * GAP
    assert picture.height > 100


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["RGB", "cloud", "score map", "ground truth"]),
        ({"rgb": None}, ["cloud", "score map", "ground truth"]),
        ({"xyz": None, "valid": None}, ["RGB", "score map", "ground truth"]),
        ({"mask": None}, ["RGB", "cloud", "score map"]),
    ],
)
def test_what_is_missing_is_left_out(sample, changes, names):
    scene = build_scene(dataclasses.replace(sample, **changes), make_map(sample))
    tiles = draw_tiles(scene, size=50)
    assert list(tiles) == names and all(tile.shape == (50, 50, 3 + (name == "cloud")) for name, tile in tiles.items())


def test_wide_images_keep_their_proportions():
    wide = Sample(rgb=torch.rand(3, 20, 40))
    assert draw_tiles(build_scene(wide), size=50)["RGB"].shape == (50, 100, 3)


def test_points_without_a_grid_are_drawn_as_clouds(sample):
    flat = Sample(sample.rgb.reshape(3, 1, -1), sample.xyz.reshape(3, 1, -1), mask=sample.mask.reshape(1, -1), meta=Meta(organised=False))
    tiles = draw_tiles(build_scene(flat, make_map(sample).reshape(1, -1)), size=60)
    assert list(tiles) == ["cloud", "score map", "ground truth"] and all(tile.shape == (60, 60, 4) for tile in tiles.values())
    pages = [np.asarray(panel(flat, dark=dark, size=60)) for dark in (False, True)]
    assert [tuple(page[30, 10]) for page in pages] == [PAGE[False], PAGE[True]]  # beside the points


def test_heat_is_where_the_defect_is(sample):
    tile = draw_tiles(build_scene(sample, make_map(sample, 50)), size=80)["score map"].astype(int)
    hot = tile[..., 0] - tile[..., 2] > 60
    assert hot[15:25, 15:25].mean() > 0.8 and hot[50:].mean() < 0.05


def test_same_scale_same_colour(sample):
    good = make_sample(defect="good")
    scale = Scale(0, 5)
    tiles = [np.asarray(panel(one, make_map(one), scale=scale, size=60)) for one in (sample, good)]
    assert tiles[0].shape == tiles[1].shape and (tiles[0] != tiles[1]).any()


def test_prediction_brings_score_and_threshold(sample):
    prediction = Prediction(4.2, make_map(sample), threshold=2.0)
    told = np.asarray(panel(sample, prediction, size=60))
    assert (told != np.asarray(panel(sample, prediction.map, size=60))).any()


def test_long_titles_and_dark(sample):
    picture = panel(sample, title="x" * 500, size=40, dark=True)
    assert np.asarray(picture)[0, 0].max() < 60
    sheet = stack_panels([picture, panel(sample, size=40)])
    assert sheet.height == picture.height * 2


def test_errors(sample):
    with pytest.raises(DataError, match="16"):
        panel(sample, size=3)
    with pytest.raises(ShapeError, match="map"):
        panel(sample, torch.zeros(3, 4, 4))
