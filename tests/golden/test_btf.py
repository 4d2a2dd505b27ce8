"""Published numbers of BTF (3D-ADS): FPFH, pooling, coreset, patch distances, image score and map (golden file btf)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mm3dad.features.align import pool_map, scatter_points
from mm3dad.features.pixelmap import pool_points
from mm3dad.memory.coreset import projection_size, select_coreset
from mm3dad.memory.flat import FlatBank
from mm3dad.methods.btf import BTF
from mm3dad.ops import estimate_normals, fpfh
from mm3dad.scoring.maps import blur_8bit, upsample_map
from mm3dad.scoring.nearest import nearest_scores, reweight_score


@pytest.fixture(scope="module")
def btf(golden):
    return {key: torch.from_numpy(value) for key, value in golden("btf").items()}


@pytest.fixture(scope="module")
def points(btf):
    return btf["xyz"].flatten(0, 1)[btf["valid_index"]]


@pytest.fixture(scope="module")
def bank(btf):
    return btf["bank_full"][btf["coreset_idx"]]


def test_valid_points(btf):
    assert torch.equal((btf["xyz"].flatten(0, 1) != 0).all(dim=1).nonzero()[:, 0], btf["valid_index"])


def test_normals_up_to_sign(btf, points):
    agreement = (estimate_normals(points).double() * btf["normals"]).sum(dim=1).abs()
    np.testing.assert_allclose(agreement, 1.0, atol=1e-4)


def test_fpfh_of_given_normals(btf, points):
    found = scatter_points(fpfh(points, btf["normals"]), btf["valid_index"], btf["xyz"].shape[:2])
    np.testing.assert_allclose(found, btf["fpfh_map"], rtol=1e-4, atol=1e-3)


def test_pooled_patches(btf):
    found = pool_map(btf["fpfh_map"], math.isqrt(len(btf["patch"])))
    np.testing.assert_allclose(found.flatten(1).T, btf["patch"], rtol=1e-4, atol=1e-4)


def test_coreset(btf):
    assert torch.equal(select_coreset(btf["bank_full"], len(btf["coreset_idx"])), btf["coreset_idx"])


def test_patch_distances(btf, bank):
    distance, index = nearest_scores(btf["patch"], bank)
    np.testing.assert_allclose(distance.view(btf["patch_dist"].shape), btf["patch_dist"], rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose((btf["patch"] - bank[index]).norm(dim=1), distance, rtol=1e-5, atol=1e-5)


def test_image_score(btf, bank):
    score = reweight_score(btf["patch"], *nearest_scores(btf["patch"], bank), bank)
    assert score == pytest.approx(float(btf["image_score"]), rel=1e-3)


def test_map(btf):
    found = upsample_map(btf["patch_dist"], tuple(btf["map_preblur"].shape))
    np.testing.assert_allclose(found, btf["map_preblur"], rtol=1e-4, atol=2e-3)


def test_published_blur(btf):
    found = blur_8bit(btf["map_preblur"])
    # Values are whole levels of the maximum / 255; one flipped level is all that rounding may do.
    level = float(btf["map_preblur"].max()) / 255
    np.testing.assert_allclose(found, btf["map_blur8"], rtol=0, atol=1.01 * level)
    assert float(found.mean()) == pytest.approx(float(btf["map_blur8"].mean()), rel=1e-3)


def test_pooled_points_with_holes_as_published(btf, points):
    side = btf["xyz"].shape[0]
    grid = math.isqrt(len(btf["patch"]))
    values = btf["fpfh_map"].flatten(1).T[btf["valid_index"]]
    found = pool_points(values, btf["valid_index"], side, (grid, grid), with_holes=True)
    np.testing.assert_allclose(found.features, btf["patch"], rtol=1e-4, atol=1e-4)


def test_the_methods_own_parts(btf):
    method = BTF(reference=True, coreset=0.1)
    full = FlatBank(torch.float32)
    full.add("all", btf["bank_full"])
    full.seal()
    chosen = method._choose_rows(full, projection_size(len(full.rows)))
    assert torch.equal(chosen, btf["coreset_idx"])
    bank = full.thin(chosen)
    rows = bank.normalise(btf["patch"])
    distance, index = bank.match(rows)
    np.testing.assert_allclose(distance.view(btf["patch_dist"].shape), btf["patch_dist"], rtol=1e-4, atol=2e-3)
    score = method._image_score("cell", rows, distance, index, bank)
    assert score == pytest.approx(float(btf["image_score"]), rel=1e-3)
    found = method._heat(distance.view(btf["patch_dist"].shape), tuple(btf["map_blur8"].shape))
    level = float(btf["map_preblur"].max()) / 255
    np.testing.assert_allclose(found, btf["map_blur8"], rtol=0, atol=1.01 * level)


def test_every_key_is_looked_at(btf):
    assert btf.keys() == {
        "xyz", "valid_index", "normals", "fpfh_map", "patch", "bank_full", "coreset_idx", "patch_dist", "image_score", "map_preblur",
        "map_blur8",
    }  # fmt: skip
