"""GLFM against numbers of its published code: the stretch, regrouped features, banks, scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm3dad.features.adapted import regroup_features
from mm3dad.memory.coreset import select_coreset
from mm3dad.memory.flat import FlatBank
from mm3dad.memory.routed import RoutedBanks
from mm3dad.ops import three_interpolate
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


def test_local_features_are_regrouped_means(file):
    points = file["pts_with_zeros"]
    points = points[(points != 0).all(1)]
    count = len(file["fps_centers"])
    middle, local = regroup_features(points, file["encoder_centers"], file["encoder_features"], count, 128)
    assert torch.equal(points[middle], file["fps_centers"])
    np.testing.assert_allclose(local, file["local_features"], atol=1e-3)
    np.testing.assert_allclose(local, file["local_features_f64"], rtol=1e-4, atol=2e-6)


def test_global_bank_routes_and_local_banks_keep_the_published_rows(file):
    """The published picks are made in float16 without a seed: the first bank differs from the exact picks late; float32 does not."""
    features = file["train_features"]
    objects, _rows, channels = features.shape
    descriptors = features.mean(1)
    banks = RoutedBanks.build(descriptors, list(features), [str(i) for i in range(objects)], len(file["global_idx"]))
    np.testing.assert_allclose(banks.centers, file["global_memory"], atol=1e-5)
    assert torch.equal(banks.centers, descriptors[file["global_idx"]])
    assert torch.equal(banks.route(descriptors), file["assign"])
    sizes, start = file["local_bank_sizes"].tolist(), 0
    for number, size in enumerate(sizes):
        joined = features[file["assign"] == number].reshape(-1, channels)
        chosen = select_coreset(joined, size)
        assert torch.equal(chosen, file["local_bank_idx_f32"][start : start + size])
        published = file["local_bank_idx"][start : start + size]
        np.testing.assert_allclose(joined[published], file["local_bank"][start : start + size], atol=1e-3)
        same = (chosen == published).long().cumprod(0).sum()
        assert int(same) >= size // 2
        start += size
    assert next(len(bank.rows) for bank in banks.thin(sizes[0] / len(banks.banks[0].rows)).banks) == sizes[0]


def test_scores_of_the_published_local_bank(file):
    points = file["pts_with_zeros"]
    points = points[(points != 0).all(1)]
    ends = file["local_bank_sizes"].cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    features = file["test_features"]
    banks = RoutedBanks(file["global_memory"], [FlatBank(torch.float32) for _ in starts])
    for bank, start, end in zip(banks.banks, starts, ends, strict=True):
        bank.add("rows", file["local_bank"][start:end])
        bank.seal()
    assert int(banks.route(features.mean(0)[None])[0]) == file["test_bank"].tolist()[0]
    distance = banks.match(features.mean(0), features)
    score = three_interpolate(points, file["encoder_centers"], distance[:, None])[:, 0]
    np.testing.assert_allclose(score, file["point_score"], atol=5e-3)
    assert float(score.mean()) == pytest.approx(file["image_score_mean"], abs=5e-3)
    assert float(score.max()) == pytest.approx(file["image_score_max"], abs=5e-3)
