"""Published numbers of M3DM: interpolation, pooling, normalisation, scores of one and two banks (golden file m3dm)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mm3dad.features.align import pool_map, resize_map, scatter_points
from mm3dad.features.pixelmap import pool_points
from mm3dad.memory.flat import FlatBank
from mm3dad.methods.m3dm import M3DM
from mm3dad.ops import three_interpolate
from mm3dad.scoring.maps import upsample_map
from mm3dad.scoring.nearest import nearest_scores, own_normalisation, reweight_score, shared_normalisation

T4 = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def m3dm(golden):
    return {key: torch.from_numpy(value) for key, value in golden("m3dm").items()}


@pytest.fixture(scope="module")
def points(m3dm):
    return m3dm["xyz"].flatten(0, 1)[m3dm["valid_index"]]


def patches_of(m3dm, modality):
    return m3dm["xyz_patch"] if modality == "xyz" else m3dm["rgb_map"].flatten(1).T


def two_bank_scores(m3dm, modality):
    """Patches, bank and distances of one modality under the published shared normalisation."""
    constants = shared_normalisation(m3dm["bank_xyz"], m3dm["bank_rgb"])
    mean, deviation = constants[:2] if modality == "xyz" else constants[2:]
    patches, bank = ((rows - mean) / deviation for rows in (patches_of(m3dm, modality), m3dm[f"bank_{modality}"]))
    return patches, *nearest_scores(patches, bank), bank


def test_valid_points(m3dm):
    assert torch.equal((m3dm["xyz"].flatten(0, 1) != 0).all(dim=1).nonzero()[:, 0], m3dm["valid_index"])


def test_interpolation_in_double(m3dm, points):
    found = three_interpolate(points, m3dm["centers"], m3dm["center_features"].double())
    np.testing.assert_allclose(found, m3dm["point_features_f64"], **T4)


def test_interpolation_of_single_precision(m3dm, points):
    found = three_interpolate(points, m3dm["centers"], m3dm["center_features"])
    np.testing.assert_allclose(found, m3dm["point_features_f64"], rtol=1e-4, atol=1e-5)
    # The published float32 form is off by up to 3e-3 of the feature scale (golden README, finding 1).
    np.testing.assert_allclose(found, m3dm["point_features"], rtol=0, atol=5e-3)


def test_pooled_point_patches(m3dm):
    grid = math.isqrt(len(m3dm["xyz_patch"]))
    found = pool_map(scatter_points(m3dm["point_features"], m3dm["valid_index"], m3dm["xyz"].shape[:2]), grid)
    np.testing.assert_allclose(found.flatten(1).T, m3dm["xyz_patch"], rtol=1e-4, atol=1e-5)


def test_image_patches_on_the_point_grid(m3dm):
    found = resize_map(m3dm["rgb_map"], math.isqrt(len(m3dm["rgb_resized_patch"])))
    np.testing.assert_allclose(found.flatten(1).T, m3dm["rgb_resized_patch"], **T4)


def test_shared_normalisation(m3dm):
    np.testing.assert_allclose(shared_normalisation(m3dm["bank_xyz"], m3dm["bank_rgb"]), m3dm["norm_constants"], **T4)


@pytest.mark.parametrize("modality", ["xyz", "rgb"])
def test_two_bank_distances_and_map(m3dm, modality):
    distance = two_bank_scores(m3dm, modality)[1]
    expected = m3dm[f"patch_dist_{modality}"]
    np.testing.assert_allclose(distance.view(expected.shape), expected, rtol=1e-4, atol=1e-4)
    half = m3dm[f"map_two_bank_{modality}_112"]
    found = upsample_map(distance.view(expected.shape), 2 * len(half))[::2, ::2]
    np.testing.assert_allclose(found, half, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modality", ["xyz", "rgb"])
def test_two_bank_image_score(m3dm, modality):
    score = reweight_score(*two_bank_scores(m3dm, modality), divisor=1000)
    assert score == pytest.approx(float(m3dm[f"image_score_two_bank_{modality}"]), rel=1e-4)


def test_single_bank_image_score(m3dm):
    mean, deviation = own_normalisation(m3dm["bank_xyz"], m3dm["bank_rgb"])[2:]
    patches, bank = ((rows - mean) / deviation for rows in (patches_of(m3dm, "rgb"), m3dm["bank_rgb"]))
    score = reweight_score(patches, *nearest_scores(patches, bank), bank, epsilon=1e-5)
    assert score == pytest.approx(float(m3dm["image_score_single_rgb"]), rel=1e-4)


def test_pooled_points_with_holes_as_published(m3dm):
    grid = math.isqrt(len(m3dm["xyz_patch"]))
    found = pool_points(m3dm["point_features"], m3dm["valid_index"], m3dm["xyz"].shape[0], (grid, grid), with_holes=True)
    np.testing.assert_allclose(found.features, m3dm["xyz_patch"], rtol=1e-4, atol=1e-5)


def remember(m3dm, names):
    method = M3DM(reference=True, coreset=1.0)
    method._modalities = tuple(name for name in ("rgb", "xyz") if name in names)
    full = {}
    for name in names:
        full[name] = FlatBank(torch.float32)
        full[name].add("all", m3dm[f"bank_{name}"])
    return method, method._remember(full, lambda stage, done, total: None)


def test_the_methods_own_two_banks(m3dm):
    method, banks = remember(m3dm, ("xyz", "rgb"))
    constants = [float(value) for name in ("xyz", "rgb") for value in (banks[name].shift[0], 1 / banks[name].scale[0])]
    np.testing.assert_allclose(constants, m3dm["norm_constants"], **T4)
    for name, bank in banks.items():
        rows = bank.normalise(patches_of(m3dm, name))
        distance, index = bank.match(rows)
        expected = m3dm[f"patch_dist_{name}"]
        np.testing.assert_allclose(distance.view(expected.shape), expected, rtol=1e-4, atol=1e-4)
        score = method._image_score(name, rows, distance, index, bank)
        assert score == pytest.approx(float(m3dm[f"image_score_two_bank_{name}"]), rel=1e-4)


def test_the_methods_own_single_bank(m3dm):
    method, banks = remember(m3dm, ("rgb",))
    rows = banks["rgb"].normalise(patches_of(m3dm, "rgb"))
    score = method._image_score("rgb", rows, *banks["rgb"].match(rows), banks["rgb"])
    assert score == pytest.approx(float(m3dm["image_score_single_rgb"]), rel=1e-4)


def test_image_patches_beside_point_patches(m3dm):
    grids = {name: (side, side) for name, side in (("rgb", m3dm["rgb_map"].shape[1]), ("xyz", math.isqrt(len(m3dm["xyz_patch"]))))}
    rows = {"xyz": m3dm["xyz_patch"], "rgb": m3dm["rgb_map"].flatten(1).T}
    np.testing.assert_allclose(M3DM()._pairs(rows, grids)[1], m3dm["rgb_resized_patch"], **T4)


def test_every_key_is_looked_at(m3dm):
    assert m3dm.keys() == {
        "xyz", "valid_index", "centers", "center_features", "point_features", "point_features_f64", "xyz_patch", "rgb_map",
        "rgb_resized_patch", "bank_xyz", "bank_rgb", "norm_constants", "patch_dist_xyz", "patch_dist_rgb", "image_score_two_bank_xyz",
        "image_score_two_bank_rgb", "map_two_bank_xyz_112", "map_two_bank_rgb_112", "image_score_single_rgb",
    }  # fmt: skip
