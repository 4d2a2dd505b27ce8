from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.synthesis.masks import (
    draw_noise,
    grow_mask,
    keep_components,
    label_components,
    measure_depth,
    perlin_mask,
    perlin_noise,
    ternary_mask,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_noise(size, cells, generator, angle):
    """Perlin noise pixel by pixel."""
    side = [math.ceil(1.5 * n) + 2 for n in cells]
    turn = 2 * math.pi * torch.rand(side[0] + 1, side[1] + 1, generator=generator)
    noise = torch.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            v, u = (i + 0.5) / size[0] - 0.5, (j + 0.5) / size[1] - 0.5
            y = (math.cos(angle) * v + math.sin(angle) * u) * cells[0] + side[0] / 2
            x = (math.cos(angle) * u - math.sin(angle) * v) * cells[1] + side[1] / 2
            top, left = math.floor(y), math.floor(x)
            fade = [t**3 * (t * (t * 6 - 15) + 10) for t in (y - top, x - left)]
            for a in (0, 1):
                for b in (0, 1):
                    angle_here = float(turn[top + a, left + b])
                    slope = math.sin(angle_here) * (y - top - a) + math.cos(angle_here) * (x - left - b)
                    noise[i, j] += (fade[0] if a else 1 - fade[0]) * (fade[1] if b else 1 - fade[1]) * slope
    return math.sqrt(2) * noise


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 6), st.integers(1, 6)), st.floats(-1.6, 1.6))
def test_noise_is_that_of_the_slow_loop(size, cells, angle):
    noise = perlin_noise(size, cells, seeded(3), angle)
    assert noise.shape == size and noise.dtype == torch.float32
    torch.testing.assert_close(noise, slow_noise(size, cells, seeded(3), angle), atol=1e-5, rtol=1e-4)


def test_noise_is_smooth_centred_and_bounded():
    fields = torch.stack([perlin_noise((64, 64), (4, 4), seeded(seed)) for seed in range(100)])
    assert abs(float(fields.mean())) < 0.02 and 0.8 < float(fields.abs().max()) <= 1.01
    assert float(fields.diff(dim=1).abs().max()) < 0.25
    assert torch.equal(perlin_noise((5, 7), (2, 3), seeded(1)), perlin_noise((5, 7), (2, 3), seeded(1)))
    assert not torch.equal(perlin_noise((5, 7), (2, 3), seeded(1)), perlin_noise((5, 7), (2, 3), seeded(2)))


def test_a_turned_lattice_leaves_no_empty_corner():
    for angle in (-math.pi / 2, -0.8, 0.8, math.pi / 2):
        noise = perlin_noise((32, 32), (32, 1), seeded(), angle)
        assert all(
            float(noise[rows, columns].abs().max()) > 0
            for rows in (slice(0, 4), slice(-4, None))
            for columns in (slice(0, 4), slice(-4, None))
        )


@pytest.mark.parametrize("call", [lambda: perlin_noise((0, 4), (1, 1), seeded()), lambda: perlin_noise((4, 4), (1, 0), seeded())])
def test_noise_refuses_sizes_below_one(call):
    with pytest.raises(ConfigError, match="at least 1, got"):
        call()


def test_masks_lie_on_the_part_and_are_never_empty():
    part = torch.zeros(40, 50, dtype=torch.bool)
    part[10:14, 30:33] = True
    for seed in range(30):
        for region in (perlin_mask(part, seeded(seed)), ternary_mask(part, seeded(seed)) != 0):
            assert bool(region.any()) and not bool((region & ~part).any())


def test_ternary_masks_have_both_signs_about_equally_often():
    part = torch.ones(64, 64, dtype=torch.bool)
    drawn = torch.stack([ternary_mask(part, seeded(seed)) for seed in range(200)])
    assert drawn.dtype == torch.int8 and set(drawn.unique().tolist()) == {-1, 0, 1}
    up, down = float((drawn == 1).float().mean()), float((drawn == -1).float().mean())
    assert 0.005 < up < 0.25 and abs(up - down) < 0.3 * (up + down)


@pytest.mark.parametrize("draw", [perlin_mask, ternary_mask])
def test_masks_of_one_pixel_and_of_none(draw):
    one = torch.zeros(9, 9, dtype=torch.bool)
    one[4, 4] = True
    assert int((draw(one, seeded()) != 0).sum()) == 1
    with pytest.raises(DataError, match="at least one pixel of the part, got none of 81"):
        draw(torch.zeros(9, 9, dtype=torch.bool), seeded())
    with pytest.raises(ShapeError, match=r"within must be \(H, W\) bool, got"):
        draw(torch.zeros(9, 9), seeded())


def test_components_of_the_wanted_size():
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[1, 1] = mask[5:8, 5:8] = mask[12:20, 10:20] = True
    mask[8, 8] = True  # touches by a corner
    assert label_components(mask)[1] == 3
    assert int(keep_components(mask, 2, 50).sum()) == 10
    assert int(keep_components(mask, 1, 400).sum()) == int(mask.sum())
    assert not bool(keep_components(torch.zeros(4, 4, dtype=torch.bool), 1, 9).any())


def test_depth_inside_is_one_in_the_middle_of_each_region():
    mask = torch.zeros(30, 30, dtype=torch.bool)
    mask[2:7, 2:7] = mask[10:29, 10:29] = True
    depth = measure_depth(mask)
    assert float(depth[4, 4]) == 1 and float(depth[19, 19]) == 1
    assert torch.equal(depth > 0, mask) and float(depth[2, 2]) == pytest.approx(1 / 3) and float(depth[10, 15]) == pytest.approx(0.1)
    assert float(measure_depth(torch.ones(5, 5, dtype=torch.bool))[0, 0]) == pytest.approx(1 / 3)


def test_growing_and_shrinking():
    mask = torch.zeros(11, 11, dtype=torch.bool)
    mask[4:7, 4:7] = True
    assert int(grow_mask(mask, 1).sum()) == 25 and int(grow_mask(mask, -1).sum()) == 1 and torch.equal(grow_mask(mask, 0), mask)
    assert bool(grow_mask(torch.ones(3, 3, dtype=torch.bool), -2).all())
    assert draw_noise((8, 8), seeded()).shape == (8, 8)
