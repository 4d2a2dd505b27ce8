"""Published numbers of PatchCore (patchcore-inspection): samplers, patch embedding, scores and masks (golden file patchcore)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm3dad.features.patchmaps import embed_layers
from mm3dad.memory.coreset import sampled_anchor, select_from_anchor, spread_anchor
from mm3dad.memory.search import nearest_rows
from mm3dad.methods.patchcore import published_scores
from mm3dad.scoring.maps import smooth_map, upsample_map

T4 = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def patchcore(golden):
    return {key: torch.from_numpy(value) for key, value in golden("patchcore").items()}


def embed(patchcore, split):
    sizes = int(patchcore["pretrain_dim"]), int(patchcore["target_dim"])
    pairs = zip(patchcore[f"{split}_layer1"], patchcore[f"{split}_layer2"], strict=True)
    return torch.cat([embed_layers(pair, *sizes).flatten(1).T for pair in pairs])


@pytest.fixture(scope="module")
def distance(patchcore):
    found = nearest_rows(embed(patchcore, "test"), embed(patchcore, "train"), 1)[0]
    return found.view(patchcore["patch_scores"].shape)


@pytest.mark.parametrize("split", ["train", "test"])
def test_embedding(patchcore, split):
    np.testing.assert_allclose(embed(patchcore, split), patchcore[f"{split}_embedding"], **T4)


def test_exact_sampler(patchcore):
    features = patchcore["coreset_features"]
    count = int(len(features) * float(patchcore["coreset_percentage"]))
    assert count == len(patchcore["coreset_idx"])
    assert torch.equal(select_from_anchor(features, count, spread_anchor(features)), patchcore["coreset_idx"])


def test_approximate_sampler(patchcore):
    features, starts = patchcore["coreset_features"], patchcore["approx_start_points"]
    count = int(len(features) * float(patchcore["coreset_percentage"]))
    assert torch.equal(select_from_anchor(features, count, sampled_anchor(features, starts)), patchcore["approx_coreset_idx"])


def test_scores_are_squared_distances(patchcore, distance):
    for number, expected in enumerate(patchcore["patch_scores"]):
        patch, image = published_scores(distance[number])
        np.testing.assert_allclose(patch, expected, **T4)
        assert image == pytest.approx(float(patchcore["image_scores"][number]), rel=1e-4)


def test_masks(patchcore, distance):
    for number, expected in enumerate(patchcore["masks"]):
        patch, _ = published_scores(distance[number])
        np.testing.assert_allclose(smooth_map(upsample_map(patch, tuple(expected.shape)), 4.0), expected, **T4)


def test_every_key_is_looked_at(patchcore):
    assert patchcore.keys() == {
        "coreset_features", "coreset_percentage", "coreset_idx", "approx_start_points", "approx_coreset_idx", "train_layer1",
        "train_layer2", "test_layer1", "test_layer2", "pretrain_dim", "target_dim", "train_embedding", "test_embedding", "patch_scores",
        "image_scores", "masks",
    }  # fmt: skip
