"""Maps: against scipy, Pillow's own arithmetic and laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.scoring import blur_8bit, pixel_map, points_to_map, smooth_map, top_fraction_score, upsample_map
from mm3dad.scoring.maps import smooth_boxes


def random_map(height, width, seed=0, dtype=torch.float64):
    return torch.rand((height, width), generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.1, 0.8, 2.0, 4.0, 9.5]))
def test_smooth_map_is_scipys_filter_at_any_size(height, width, sigma):
    scores = random_map(height, width, height * 50 + width)
    assert np.allclose(smooth_map(scores, sigma), gaussian_filter(scores.numpy(), sigma), atol=1e-12)


def test_smooth_map_of_measured_pixels_is_the_ratio_of_two_blurs():
    scores, valid = random_map(20, 30), random_map(20, 30, 1) > 0.2
    expected = gaussian_filter((scores * valid).numpy(), 2.0) / gaussian_filter(valid.double().numpy(), 2.0)
    assert np.allclose(smooth_map(scores, 2.0, valid), expected, atol=1e-12)


def test_a_gap_takes_the_scores_around_it_and_the_far_outside_is_zero():
    scores, valid = torch.full((64, 64), 3.0, dtype=torch.float64), torch.ones(64, 64, dtype=torch.bool)
    valid[10:13, 10:13] = valid[:, 40:] = False
    scores[~valid] = 0
    smooth = smooth_map(scores, 2.0, valid)
    assert torch.allclose(smooth[:, :40], torch.full((64, 40), 3.0, dtype=torch.float64))
    assert float(smooth[:, 50:].max()) == 0
    assert float(smooth_map(scores, 2.0, torch.zeros_like(valid)).max()) == 0


@pytest.mark.parametrize("valid", [torch.ones(4, 5, dtype=torch.bool), torch.ones(4, 4)])
def test_smooth_map_refuses_a_foreign_validity(valid):
    with pytest.raises(ShapeError, match="valid must be bool"):
        smooth_map(torch.zeros(4, 4), 1.0, valid)


def test_smooth_map_keeps_constants_and_copies_at_zero():
    constant = torch.full((5, 300), 3.0)
    assert torch.allclose(smooth_map(constant), constant)
    scores = random_map(4, 4)
    copy = smooth_map(scores, 0)
    assert torch.equal(copy, scores) and copy.data_ptr() != scores.data_ptr()
    assert smooth_map(scores.float()).dtype == torch.float32


def test_upsample_map_by_hand():
    row = torch.tensor([[0.0, 1.0]])
    assert upsample_map(row, (1, 4)).tolist() == [[0.0, 0.25, 0.75, 1.0]]
    assert torch.allclose(upsample_map(row, (1, 4), align_corners=True), torch.tensor([[0.0, 1 / 3, 2 / 3, 1.0]]))
    assert torch.equal(upsample_map(torch.tensor([[2.5]]), 3), torch.full((3, 3), 2.5))


def test_blur_8bit_is_close_to_the_gaussian_and_survives_zeros():
    scores = smooth_map(random_map(60, 50, 1, torch.float32), 3)
    assert float((blur_8bit(scores) - smooth_map(scores)).abs().max()) < 0.03 * float(scores.max())
    assert torch.equal(blur_8bit(torch.zeros(4, 4)), torch.zeros(4, 4))
    constant = blur_8bit(torch.full((30, 30), 7.0))
    assert torch.allclose(constant, torch.full((30, 30), 7.0))


def test_blur_8bit_has_256_levels_of_the_maximum():
    scores = random_map(40, 40, 2, torch.float32)
    levels = blur_8bit(scores) / scores.max() * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_blur_8bit_of_one_pixel_spreads_as_published():
    spot = torch.zeros(41, 41)
    spot[20, 20] = 50.0
    wide = torch.zeros(41, 41)
    wide[10:31, 10:31] = 50.0
    assert float(blur_8bit(spot).max()) < 1.0
    assert float(blur_8bit(wide)[20, 20]) == pytest.approx(50.0, rel=0.02)
    assert torch.allclose(blur_8bit(wide), blur_8bit(wide).T, atol=0.3)


def test_points_to_map_takes_the_highest_of_a_pixel():
    found = points_to_map(torch.tensor([1.0, 5.0, 2.0]), torch.tensor([0, 5, 5]), (2, 3))
    assert found.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 5.0]]
    empty = torch.zeros(0)
    assert torch.equal(points_to_map(empty, torch.zeros(0, dtype=torch.int64), 2), torch.zeros(2, 2))


def test_top_fraction_by_hand():
    scores = torch.arange(10.0).view(2, 5)
    assert top_fraction_score(scores, 0) == 9.0
    assert top_fraction_score(scores, 0.05) == 9.0
    assert top_fraction_score(scores, 0.3) == 8.0
    assert top_fraction_score(scores, 1) == pytest.approx(4.5)
    assert top_fraction_score(torch.zeros(3, 3), 0.5) == 0.0


@pytest.mark.parametrize(
    "function",
    [lambda m: upsample_map(m, 4), smooth_map, blur_8bit, lambda m: top_fraction_score(m, 0.1)],
    ids=["up", "smooth", "blur", "top"],
)
def test_bad_maps(function):
    for wrong in (torch.zeros(3), torch.zeros(1, 3, 3), torch.zeros(0, 3), torch.zeros(3, 3, dtype=torch.int64), np.zeros((3, 3))):
        with pytest.raises(ShapeError, match="got"):
            function(wrong)
    for value in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="finite"):
            function(torch.full((2, 2), value))


def test_bad_options():
    scores = torch.rand(4, 4)
    for size in (0, (3, 0), (1, 2, 3)):
        with pytest.raises(ConfigError, match="size must be"):
            upsample_map(scores, size)
    for sigma in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="sigma must be"):
            smooth_map(scores, sigma)
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="fraction must lie"):
            top_fraction_score(scores, fraction)
    with pytest.raises(DataError, match=">= 0"):
        blur_8bit(scores - 1)


def test_bad_points():
    values = torch.ones(2)
    with pytest.raises(ShapeError, match="int64"):
        points_to_map(values, torch.tensor([0.0, 1.0]), 2)
    with pytest.raises(ShapeError, match="like values"):
        points_to_map(values, torch.tensor([0]), 2)
    for index in (-1, 4):
        with pytest.raises(ShapeError, match=r"0 \.\. 3"):
            points_to_map(values, torch.tensor([0, index]), 2)
    with pytest.raises(DataError, match="finite"):
        points_to_map(values * float("nan"), torch.tensor([0, 1]), 2)


def test_boxes_average_their_pixels():
    heat = torch.arange(35.0).view(5, 7).square()
    found = smooth_boxes(heat, (3,))
    assert found[2, 3].item() == pytest.approx(heat[1:4, 2:5].mean().item()) and found.shape == heat.shape
    assert torch.allclose(smooth_boxes(torch.full((4, 9), 2.0)), torch.full((4, 9), 2.0))
    dark = smooth_boxes(torch.full((4, 9), 2.0), zero_padded=True)
    assert float(dark[0, 0]) < 0.5 * float(dark[2, 4])
    assert smooth_boxes(torch.ones(1, 1)).tolist() == [[pytest.approx(1)]]
    with pytest.raises(ConfigError, match="sides must be odd"):
        smooth_boxes(heat, (4,))


@pytest.mark.parametrize("size", [(224, 224), (37, 90), (1, 8)])
def test_pixel_map_smooths_by_the_images_size(size):
    scores = random_map(5, 7, dtype=torch.float32)
    sigma = 4 * (size[0] * size[1]) ** 0.5 / 224
    assert torch.equal(pixel_map(scores, size), smooth_map(upsample_map(scores, size), sigma))
    assert torch.equal(pixel_map(scores, size, 0), upsample_map(scores, size))
    assert torch.allclose(pixel_map(torch.full((3, 3), 2.0), size), torch.tensor(2.0))
