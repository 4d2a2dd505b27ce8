"""Published numbers of RAD: retrieval, windowed layer scores, fusion, map and image score (golden file rad)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mm3dad.fusion.layers import fuse_layers
from mm3dad.memory.layered import LayeredBank
from mm3dad.scoring.maps import blur_5x5, gaussian_5x5, top_fraction_score, upsample_map
from mm3dad.scoring.windowed import windowed_scores

T4 = {"rtol": 1e-4, "atol": 1e-6}
WINDOWS = {"rho0": 0, "rho1": 1, "rho2": 2, "rhoNone": None}


@pytest.fixture(scope="module")
def rad(golden):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in golden("rad").items()}


@pytest.fixture(scope="module")
def grid(rad):
    side = math.isqrt(rad["query_patch"].shape[1])
    return side, side


def bank_of(rad):
    patches = rad["bank_patch"]
    bank = LayeredBank(patches.shape[1])
    for image in range(patches.shape[1]):
        bank.add(str(image), rad["bank_cls"][-1, image], [layer[image] for layer in patches])
    return bank


def layer_scores(rad, grid, name):
    images = rad["topk_images"]
    return torch.stack(
        [windowed_scores(q, b[images], grid, WINDOWS[name]) for q, b in zip(rad["query_patch"], rad["bank_patch"], strict=True)]
    )


def check_rest(rad, grid, scores, key, weights=()):
    fused = fuse_layers(scores, weights).view(grid)
    np.testing.assert_allclose(fused, rad[f"fused_{key}"], **T4)
    heat = blur_5x5(upsample_map(fused, int(rad["resize_mask"])), "constant")
    np.testing.assert_allclose(heat, rad[f"map_{key}"], **T4)
    assert top_fraction_score(heat, float(rad["max_ratio"])) == pytest.approx(float(rad[f"image_score_{key}"]), rel=1e-4)
    return heat


def test_global_retrieval(rad):
    bank = bank_of(rad)
    np.testing.assert_allclose(bank.similarity(rad["query_cls"][-1]), rad["cls_similarity"], **T4)
    assert torch.equal(bank.retrieve(rad["query_cls"][-1], int(rad["k_image"])), rad["topk_images"])


def test_every_window_of_the_file(rad, grid):
    names = [key.removeprefix("scores_per_layer_") for key in rad if key.startswith("scores_per_layer_") and "weighted" not in key]
    assert len(names) >= 3
    for name in names:
        scores = layer_scores(rad, grid, name)
        np.testing.assert_allclose(scores, rad[f"scores_per_layer_{name}"], **T4)
        check_rest(rad, grid, scores, name)


def test_weighted_layers_and_maximum(rad, grid):
    scores = layer_scores(rad, grid, "rho1")
    np.testing.assert_allclose(scores, rad["scores_per_layer_rho1_weighted"], **T4)
    check_rest(rad, grid, scores, "rho1_weighted", rad["layer_weights"].tolist())
    heat = check_rest(rad, grid, scores, "rho1")
    assert top_fraction_score(heat, 0.0) == pytest.approx(float(rad["image_score_max_rho1"]), rel=1e-4)


def test_kernel(rad):
    np.testing.assert_allclose(gaussian_5x5(), rad["gauss_kernel"], **T4)


def test_half_precision_bank_stays_within_a_thousandth(rad, grid):
    bank = bank_of(rad)
    images = bank.retrieve(rad["query_cls"][-1], int(rad["k_image"]))
    for layer, query in enumerate(rad["query_patch"]):
        found = windowed_scores(query, bank.patches_of(layer, images), grid, 1)
        np.testing.assert_allclose(found, rad["scores_per_layer_rho1"][layer], rtol=0, atol=1e-3)


def test_every_key_is_looked_at(rad):
    kinds = ("scores_per_layer", "fused", "map", "image_score")
    windows = {key.removeprefix("fused_") for key in rad if key.startswith("fused_")}
    assert {"rho1", "rho1_weighted"} <= windows <= {*WINDOWS, "rho1_weighted"}
    assert rad.keys() == {f"{kind}_{name}" for kind in kinds for name in windows} | {
        "bank_cls", "bank_patch", "query_cls", "query_patch", "k_image", "resize_mask", "max_ratio", "layer_weights",
        "topk_images", "cls_similarity", "gauss_kernel", "image_score_max_rho1",
    }  # fmt: skip
