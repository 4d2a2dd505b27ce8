"""Published numbers of MRAD: smoothing, the labelled memory without and with projections, maps, scores, losses (golden file mrad)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from mm3dad.features.tokens import smooth_tokens
from mm3dad.memory.labelled import label_probability, region_means, similar_rows
from mm3dad.nets.labelled_head import PairProjection, dice_loss, focal_loss, scaled_cross_entropy
from mm3dad.scoring.maps import smooth_map, upsample_map
from mm3dad.scoring.zero_shot import mix_score

T4 = {"rtol": 1e-4, "atol": 1e-6}
QUANTILE = {"image": 0.95, "patch": 0.80}


@pytest.fixture(scope="module")
def mrad(golden):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in golden("mrad").items()}


@pytest.fixture(scope="module")
def grid(mrad):
    side = math.isqrt(mrad["patch_raw"].shape[1])
    return side, side


def queries_of(mrad, level):
    rows = mrad[f"{level}_query"]
    return rows.reshape(-1, rows.shape[-1])


@torch.no_grad()
def project(mrad, level):
    weight = mrad[f"w_{level}_q"]
    head = PairProjection(weight.shape[1], weight.shape[0])
    state = {f"{name}.{kind}": mrad[f"{kind[0]}_{level}_{name[0]}"] for name in ("query", "key") for kind in ("weight", "bias")}
    head.load_state_dict(state)
    return head(queries_of(mrad, level), mrad[f"{level}_keys"])


def fine_tuned(mrad, level, dropout=False):
    dropped = similar_rows(queries_of(mrad, level), mrad[f"{level}_keys"], QUANTILE[level]) if dropout else None
    return label_probability(*project(mrad, level), mrad[f"{level}_values"], dropped=dropped)


def to_pixels(mrad, probability, grid):
    maps = probability.view(-1, *grid, 2).permute(0, 3, 1, 2)
    return torch.stack([torch.stack([upsample_map(channel, int(mrad["map_size"])) for channel in one]) for one in maps])


def test_smoothing_and_queries(mrad, grid):
    found = torch.stack([smooth_tokens(patches, grid) for patches in mrad["patch_raw"]])
    np.testing.assert_allclose(found, mrad["patch_smoothed"], **T4)
    np.testing.assert_allclose(F.normalize(found, dim=2), mrad["patch_query"], **T4)


@pytest.mark.parametrize("level", ["image", "patch"])
def test_training_free_probabilities(mrad, level):
    found = label_probability(queries_of(mrad, level), mrad[f"{level}_keys"], mrad[f"{level}_values"])
    np.testing.assert_allclose(found.view(mrad[f"tf_{level}_prob"].shape), mrad[f"tf_{level}_prob"], **T4)


def test_patch_similarity(mrad):
    found = queries_of(mrad, "patch") @ mrad["patch_keys"].T
    np.testing.assert_allclose(found.view(mrad["patch_similarity"].shape), mrad["patch_similarity"], **T4)


@pytest.mark.parametrize("level", ["image", "patch"])
def test_fine_tuned_probabilities(mrad, level):
    for key, dropout in ((f"ft_{level}_prob", False), (f"ft_{level}_prob_dropout", True)):
        np.testing.assert_allclose(fine_tuned(mrad, level, dropout).view(mrad[key].shape), mrad[key], **T4)


def test_fine_tuned_logits(mrad):
    queries, keys = project(mrad, "patch")
    np.testing.assert_allclose((queries @ keys.T).view(mrad["ft_patch_logit"].shape), mrad["ft_patch_logit"], rtol=1e-4, atol=1e-5)


def test_region_tokens(mrad):
    for patches, probability, expected in zip(mrad["patch_projection"], mrad["ft_patch_prob"], mrad["region_tokens_ft"], strict=True):
        is_anomalous = probability[:, 1] > 0.5
        np.testing.assert_allclose(region_means(patches, torch.stack([~is_anomalous, is_anomalous])), expected, **T4)


def test_maps_and_image_scores(mrad, grid):
    plain = label_probability(queries_of(mrad, "patch"), mrad["patch_keys"], mrad["patch_values"])
    for key, probability in (("tf_similarity_map", plain), ("ft_similarity_map", fine_tuned(mrad, "patch"))):
        np.testing.assert_allclose(to_pixels(mrad, probability, grid).permute(0, 2, 3, 1), mrad[key], **T4)
    heat = torch.stack([smooth_map(maps[1], 4.0) for maps in to_pixels(mrad, plain, grid)])
    np.testing.assert_allclose(heat, mrad["tf_anomaly_map"], **T4)
    score = [mix_score(one, float(p[1]), 0.01, float(mrad["score_k"])) for one, p in zip(heat, mrad["tf_image_prob"], strict=True)]
    np.testing.assert_allclose(score, mrad["tf_image_score"], **T4)


def test_losses(mrad, grid):
    maps = to_pixels(mrad, fine_tuned(mrad, "patch", dropout=True), grid)
    found = {
        "loss_focal": focal_loss(maps, mrad["gt_mask"]),
        "loss_dice": dice_loss(maps[:, 1], mrad["gt_mask"]),
        "loss_ce": scaled_cross_entropy(fine_tuned(mrad, "image", dropout=True), mrad["label"]),
    }
    for key, value in found.items():
        assert float(value) == pytest.approx(float(mrad[key]), rel=1e-4), key


def test_every_key_is_looked_at(mrad):
    assert mrad.keys() == {
        "image_query", "image_keys", "image_values", "patch_raw", "patch_smoothed", "patch_query", "patch_keys", "patch_values",
        "patch_projection", "w_image_q", "b_image_q", "w_image_k", "b_image_k", "w_patch_q", "b_patch_q", "w_patch_k",
        "b_patch_k", "tf_image_prob", "ft_image_prob", "ft_image_prob_dropout", "tf_patch_prob", "patch_similarity",
        "ft_patch_prob", "region_tokens_ft", "ft_patch_logit", "ft_patch_prob_dropout", "tf_similarity_map", "ft_similarity_map",
        "tf_anomaly_map", "map_size", "score_k", "tf_image_score", "gt_mask", "label", "loss_focal", "loss_dice", "loss_ce",
    }  # fmt: skip
