from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mm3dad.view.colors import TRUTH, Scale, heat_picture, heat_table, outline_mask, overlay_heat, shared_scale, to_picture


def srgb_to_oklab(rgb: np.ndarray) -> np.ndarray:
    """The inverse of what the package computes, written from the definition."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.793617785, -0.0040720468],
        [1.9779984951, -2.428592205, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.808675766],
    ]
    return np.cbrt(linear @ np.array(to_lms).T) @ np.array(to_lab).T


def test_heat_colours_are_evenly_spaced_and_only_get_lighter():
    lab = srgb_to_oklab(heat_table() / 255)
    assert (np.diff(lab[:, 0]) > -0.006).all()  # rounding to 8 bits moves a step a little
    assert lab[-1, 0] - lab[0, 0] > 0.8
    steps = np.linalg.norm(np.diff(lab[::15], axis=0), axis=1)
    assert steps.max() / steps.min() < 1.6


def test_truth_colour_is_far_from_every_heat_colour():
    distance = np.linalg.norm(srgb_to_oklab(heat_table() / 255) - srgb_to_oklab(np.array(TRUTH) / 255), axis=1)
    assert distance.min() > 0.15


def test_one_scale_gives_one_colour_to_one_score():
    quiet, loud = np.full((4, 4), 1.0, np.float32), np.linspace(0, 9, 16, dtype=np.float32).reshape(4, 4)
    scale = shared_scale([quiet, loud])
    assert heat_picture(quiet, scale)[0, 0].tolist() == heat_picture(np.array([[1.0]]), scale)[0, 0].tolist()
    assert heat_picture(np.array([[scale.high]]), scale)[0, 0].tolist() == heat_table()[255].tolist()


def test_threshold_keeps_noise_of_good_parts_cold():
    noise = np.random.default_rng(0).normal(1.0, 0.05, (50, 50)).astype(np.float32)
    assert shared_scale([noise]).apply(noise).max() == 1.0
    assert shared_scale([noise], threshold=3.0).apply(noise).max() < 0.12


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-1e6, 1e6, width=32)), st.none() | st.floats(-1e3, 1e3))
def test_scale_maps_anything_into_the_unit_interval_in_order(values, threshold):
    scale = shared_scale([values], threshold)
    unit = scale.apply(values)
    assert scale.high > scale.low and unit.min() >= 0 and unit.max() <= 1
    order = np.argsort(values.ravel())
    assert (np.diff(unit.ravel()[order]) >= 0).all()


@pytest.mark.parametrize("maps", [[], [np.full((2, 2), np.nan)], [np.zeros((2, 2))], [np.array([[np.inf, 1.0]])]])
def test_scale_of_empty_or_constant_maps_is_usable(maps):
    scale = shared_scale(maps)
    assert np.isfinite([scale.low, scale.high]).all() and scale.high > scale.low
    assert (heat_picture(np.array([[np.nan]]), scale)[0, 0] == heat_table()[0]).all()


def test_overlay_keeps_the_cold_picture_and_covers_it_where_hot():
    base = to_picture(np.random.default_rng(0).random((3, 8, 8)))
    values = np.zeros((8, 8), np.float32)
    values[2, 3] = 1
    shown = overlay_heat(base, values, Scale(0, 1))
    assert np.abs(shown[2, 3].astype(int) - heat_table()[255]).max() < 45
    cold = shown[5].astype(float).mean(1)
    assert np.corrcoef(cold, base[5].astype(float) @ [0.299, 0.587, 0.114])[0, 1] > 0.9


def test_outline_lies_around_the_mask_only():
    picture = np.zeros((20, 20, 3), np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[8:12, 8:12] = True
    drawn = (outline_mask(picture, mask, width=2) == TRUTH).all(-1)
    assert not drawn[mask].any() and drawn[7, 9] and drawn[6, 9] and not drawn[4, 9]
    assert not picture.any()
    full = outline_mask(picture, np.ones((20, 20), bool))
    assert not full.any()
