"""GLFM against numbers of its published code: the stretch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm3dad.synthesis import find_region, measure_normal, published_height, stretch_points


def draws_of(golden):
    return range(sum(key.startswith("stretch_draws_") for key in golden))


@pytest.fixture(scope="module")
def file(golden):
    return {key: torch.from_numpy(value) if value.ndim else value.item() for key, value in golden("glfm").items()}


def read_draw(file, number):
    count, seed, sign, *weights = file[f"stretch_draws_{number}"].tolist()
    return int(count), int(seed), sign, weights


def test_stretch_replays_the_published_draws(file):
    points = file["stretch_in"].double()
    for number in draws_of(file):
        count, seed, sign, weights = read_draw(file, number)
        region = find_region(points, seed, count, weights, published=True)
        assert torch.equal(region, file[f"stretch_order_{number}"].long())
        mask = torch.zeros(len(points), dtype=torch.int64)
        mask[region] = 1
        assert torch.equal(mask, file[f"stretch_mask_{number}"])
        height = published_height(points, count)
        assert height == pytest.approx(100 * count * file[f"stretch_mean_nn_sq_{number}"], rel=1e-5)
        moved = stretch_points(points, region, file[f"stretch_normal_{number}"], sign * height)
        np.testing.assert_allclose(moved, file[f"stretch_out_{number}"], rtol=1e-5, atol=1e-8)


def test_normals_are_those_of_the_published_code_up_to_sign(file):
    points = file["stretch_in"].double()
    for number in draws_of(file):
        _, seed, _, _ = read_draw(file, number)
        assert abs(float(measure_normal(points, seed) @ file[f"stretch_normal_{number}"])) == pytest.approx(1, abs=1e-6)


def test_corrected_regions_hold_their_seed(file):
    """The published search may miss its seed; about the seed it cannot."""
    points = file["stretch_in"].double()
    for number in draws_of(file):
        count, seed, _, weights = read_draw(file, number)
        assert find_region(points, seed, count, weights)[0] == seed
