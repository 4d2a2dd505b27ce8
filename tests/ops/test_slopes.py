from __future__ import annotations

import pytest
import torch

from mm3dad.ops.slopes import find_slopes


def test_a_plane_has_its_slopes_inside_and_none_across_a_mirror():
    row, column = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    maps = torch.stack([2 * row - 3 * column, row])[None]
    down, across = find_slopes(maps)
    assert down.shape == across.shape == maps.shape
    torch.testing.assert_close(down[0, 0, 1:-1], torch.full((3, 7), 2.0))
    torch.testing.assert_close(across[0, 0, :, 1:-1], torch.full((5, 5), -3.0))
    assert not bool(down[0, 0, [0, -1]].any()) and not bool(across[0, 0, :, [0, -1]].any()) and not bool(across[0, 1].any())


def test_slopes_are_the_windows_of_sobel():
    maps = torch.rand(2, 3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]], dtype=torch.float64) / 8
    down, across = find_slopes(maps)
    for b, c, i, j in ((0, 0, 1, 1), (1, 2, 4, 2), (0, 1, 2, 2)):
        window = maps[b, c, i - 1 : i + 2, j - 1 : j + 2]
        assert float(down[b, c, i, j]) == pytest.approx(float((window * kernel).sum()))
        assert float(across[b, c, i, j]) == pytest.approx(float((window * kernel.T).sum()))


def test_small_slopes_survive_autocast():
    maps = (1 + 1e-4 * torch.arange(9.0)).expand(1, 1, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        across = find_slopes(maps)[1]
    torch.testing.assert_close(across[..., 1:-1], torch.full((1, 1, 9, 7), 1e-4), rtol=1e-2, atol=0)
