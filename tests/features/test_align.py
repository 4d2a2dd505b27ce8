"""Pixels, patches and points on one grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.features.align import patch_of_pixel, pool_map, resize_map, scatter_points


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(1, 8))
def test_patches_cut_the_image_into_a_grid(H, W, h, w):
    found = patch_of_pixel(torch.arange(H * W), (H, W), (h, w)).view(H, W).numpy()
    rows, columns = np.arange(H) * h // H, np.arange(W) * w // W
    np.testing.assert_array_equal(found, rows[:, None] * w + columns)


def test_published_patches():
    # 224 pixels in 28 patches: row // 8 * 28 + column // 8.
    pixel = torch.tensor([0, 7, 8, 224 * 8, 224 * 224 - 1])
    assert patch_of_pixel(pixel, 224, 28).tolist() == [0, 0, 1, 28, 783]


def test_scatter_and_read_back():
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    pixel = torch.tensor([0, 6, 7, 12, 34])
    spread = scatter_points(values, pixel, (5, 7))
    assert spread.shape == (3, 5, 7)
    assert torch.equal(spread.flatten(1).T[pixel], values)
    assert torch.equal(spread[:, 1, 0], values[2])  # row 1 of seven columns starts at pixel 7
    assert int(spread.count_nonzero()) == 15
    assert not scatter_points(values[:0], pixel[:0], 4).any()


@given(st.integers(3, 30), st.integers(3, 30), st.integers(1, 12), st.integers(1, 12))
def test_pooling_is_an_average_of_averages(H, W, h, w):
    features = torch.rand(2, H, W, generator=torch.Generator().manual_seed(H * W), dtype=torch.float64)
    near = sum(features[:, i : H - 2 + i, j : W - 2 + j] for i in range(3) for j in range(3)).numpy() / 9
    expected = np.empty((2, h, w))
    for i in range(h):
        for j in range(w):
            rows = slice(i * (H - 2) // h, -(-(i + 1) * (H - 2) // h))
            columns = slice(j * (W - 2) // w, -(-(j + 1) * (W - 2) // w))
            expected[:, i, j] = near[:, rows, columns].mean(axis=(1, 2))
    np.testing.assert_allclose(pool_map(features, (h, w)), expected)


def test_constants_stay_and_finer_grids_repeat():
    torch.testing.assert_close(pool_map(torch.full((2, 9, 5), 3.0), 4), torch.full((2, 4, 4), 3.0))
    cells = torch.arange(6.0).view(1, 2, 3)
    assert torch.equal(resize_map(cells, (4, 6)), cells.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_errors():
    pixel = torch.tensor([0, 12])
    with pytest.raises(ShapeError, match="0 to 11, got 0 to 12"):
        patch_of_pixel(pixel, (3, 4), 2)
    with pytest.raises(ShapeError, match=r"must be \(N,\) integers"):
        patch_of_pixel(pixel.float(), 9, 2)
    with pytest.raises(ConfigError, match="grid must be"):
        patch_of_pixel(pixel, 9, 0)
    with pytest.raises(ConfigError, match="image_size must be"):
        patch_of_pixel(pixel, (9, 9, 3), 2)
    with pytest.raises(ShapeError, match=r"values must be \(N, C\) with N = 2"):
        scatter_points(torch.zeros(3, 5), pixel, 9)
    with pytest.raises(ShapeError, match="got 0 to 12"):
        scatter_points(torch.zeros(2, 5), pixel, 3)
    with pytest.raises(ShapeError, match="H and W at least 3"):
        pool_map(torch.zeros(1, 2, 5), 2)
    with pytest.raises(ShapeError, match=r"floating \(C, H, W\)"):
        resize_map(torch.zeros(1, 4, 5, dtype=torch.uint8), 2)
