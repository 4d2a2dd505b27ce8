"""Published numbers of G2SF: encoding, scale network, fused distances over ranks, every loss (golden file g2sf)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mm3dad.fusion.metric import (
    consistency_loss,
    encode_direction,
    fuse_distances,
    hinge_loss,
    margin_loss,
    mismatch_loss,
    pick_rank,
    scale_loss,
    separation_loss,
)
from mm3dad.memory.search import nearest_rows
from mm3dad.nets.scale_net import ScaleNet

T4 = {"rtol": 1e-4, "atol": 1e-6}
LAYERS = {
    "direction.0": "residual_transformer.network.0.linear",
    "direction.3": "residual_transformer.network.1.linear",
    "prototype.0": "transformer.network.0.linear",
    "prototype.3": "transformer.network.1.linear",
    "regressor.0": "regressor.0",
    "regressor.3": "regressor.3",
}


@pytest.fixture(scope="module")
def g2sf(golden):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in golden("g2sf").items()}


@pytest.fixture(scope="module")
def net(g2sf):
    hidden, channels = g2sf["net.transformer.network.0.linear.weight"].shape
    code, joint = len(g2sf["net.transformer.network.1.linear.bias"]), len(g2sf["net.regressor.0.bias"])
    net = ScaleNet(channels, hidden, code, joint).eval()
    state = {f"{own}.{kind}": g2sf[f"net.{theirs}.{kind}"] for own, theirs in LAYERS.items() for kind in ("weight", "bias")}
    net.load_state_dict(state | {"balance": g2sf["global_scale_raw"][:, 0]})
    return net.requires_grad_(False)


def ranks_of(g2sf):
    """Rows of the banks nearest to each feature: index and distance per modality, (P, J) each."""
    width = g2sf["coreset_img"].shape[1]
    parts = {"img": g2sf["feature"][:, :width], "pcd": g2sf["feature"][:, width:]}
    return {name: nearest_rows(part, g2sf[f"coreset_{name}"], int(g2sf["anchor"]) + 1) for name, part in parts.items()}


def judge(g2sf, net, features, prototypes):
    """Fused distance, local scales and plain normalised distances of pairs of rows."""
    width = g2sf["coreset_img"].shape[1]
    away = features - prototypes
    distances = torch.stack([away[:, :width].norm(dim=1), away[:, width:].norm(dim=1)], dim=1) / g2sf["score_mean"]
    scales = net(encode_direction(features, prototypes), prototypes)
    return fuse_distances(distances, scales, net.shares), scales, distances


def all_ranks(g2sf, net):
    found = ranks_of(g2sf)
    out = []
    for j in range(found["img"][1].shape[1]):
        prototypes = torch.cat([g2sf[f"coreset_{name}"][found[name][1][:, j]] for name in ("img", "pcd")], dim=1)
        out.append(judge(g2sf, net, g2sf["feature"], prototypes))
    return [torch.stack(part, dim=1) for part in zip(*out, strict=True)]


def training(g2sf, net):
    """Noisy training rows judged against their noisy nearest prototypes, and which are normal."""
    return (*judge(g2sf, net, g2sf["train_feature_noisy"], g2sf["train_core_noisy"]), g2sf["train_label"] == 1)


def test_neighbours(g2sf):
    for name, (distance, index) in ranks_of(g2sf).items():
        assert torch.equal(index, g2sf[f"anchor_idx_{name}"])
        np.testing.assert_allclose(distance, g2sf[f"anchor_dist_{name}"], rtol=1e-4, atol=1e-4)


def test_encoding_shares_and_scales(g2sf, net):
    found = ranks_of(g2sf)
    prototypes = torch.cat([g2sf[f"coreset_{name}"][found[name][1][:, 0]] for name in ("img", "pcd")], dim=1)
    encoded = encode_direction(g2sf["feature"], prototypes)
    np.testing.assert_allclose(encoded[:, : g2sf["encoding_head"].shape[1]], g2sf["encoding_head"], **T4)
    np.testing.assert_allclose(encoded.norm(dim=1), g2sf["encoding_norm"], **T4)
    np.testing.assert_allclose(net(encoded, prototypes), g2sf["lspn_scale"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.shares, g2sf["global_scale"], **T4)


def test_fused_distances_over_ranks(g2sf, net):
    fused, scales, distances = all_ranks(g2sf, net)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(fused, g2sf["predict_per_anchor"], **close)
    np.testing.assert_allclose(pick_rank(fused), g2sf["predict_min"], **close)
    np.testing.assert_allclose(scales[:, 0].T, torch.stack([g2sf["scale_img_nearest"], g2sf["scale_pcd_nearest"]]), **close)
    is_background = (g2sf["bg_mask"] == 1)[:, None, None]
    fused = fuse_distances(distances, torch.where(is_background, 1.0, scales), net.shares)
    for rule, key in (("min", "min"), ("max", "max"), ("mean", "average"), ("nearest", "zero")):
        np.testing.assert_allclose(pick_rank(fused, rule), g2sf[f"predict_bg_{key}"], **close)


def test_prediction_of_training_rows(g2sf, net):
    np.testing.assert_allclose(training(g2sf, net)[0], g2sf["train_pred"][:, 0], rtol=1e-4, atol=1e-5)


def test_separation_and_margin(g2sf, net):
    fused, _, _, is_normal = training(g2sf, net)
    bound = float(g2sf["criterion_margin"])
    found = {
        "loss_svdd": separation_loss(fused, is_normal, bound),
        "loss_svdd_unweighted": separation_loss(fused, is_normal, bound, weighted=False),
        "loss_negative": separation_loss(fused, torch.zeros_like(is_normal), bound, weighted=False),
        "loss_margin": margin_loss(fused, is_normal),
        "loss_margin_unweighted": margin_loss(fused, is_normal),
    }
    for key, value in found.items():
        assert float(value) == pytest.approx(float(g2sf[key]), rel=1e-4, abs=1e-6), key


def test_hinge_and_margin_below_a_quantile(g2sf, net):
    fused, _, _, is_normal = training(g2sf, net)
    np.testing.assert_allclose(fused, g2sf["negmargin_score"], rtol=1e-4, atol=1e-5)
    found = {
        "negmargin_loss": hinge_loss(fused, is_normal, float(g2sf["criterion_margin"])),
        "negmargin_margin": margin_loss(fused, is_normal, 0.995),
    }
    for key, value in found.items():
        assert float(value) == pytest.approx(float(g2sf[key]), rel=1e-4, abs=1e-6), key


def mismatched(g2sf, net):
    """First half: features of image and cloud shuffled apart; second half: prototypes."""
    width, half = g2sf["coreset_img"].shape[1], len(g2sf["train_label"]) // 2
    features, prototypes = g2sf["train_feature_noisy"].clone(), g2sf["train_core_noisy"].clone()
    order = g2sf["train_permutations"]
    for rows, part, first, second in ((features, slice(0, half), 0, 1), (prototypes, slice(half, None), 2, 3)):
        block = rows[part]
        rows[part] = torch.cat([block[order[first], :width], block[order[second], width:]], dim=1)
    return judge(g2sf, net, features, prototypes)[1]


def ranks_of_training(g2sf, net):
    """Fused and plain distances to all 2a + 1 neighbours; the nearest is the noisy one."""
    index = g2sf["train_idx2coreset"]
    ranks = index.shape[1] // 2
    out = [judge(g2sf, net, g2sf["train_feature_noisy"], g2sf["train_core_noisy"])]
    for j in range(1, ranks):
        prototypes = torch.cat([g2sf["coreset_img"][index[:, j]], g2sf["coreset_pcd"][index[:, ranks + j]]], dim=1)
        out.append(judge(g2sf, net, g2sf["train_feature_noisy"], prototypes))
    return torch.stack([one[0] for one in out], dim=1), torch.stack([one[2] for one in out], dim=1)


def test_remaining_losses_and_their_sum(g2sf, net):
    fused, scales, _, is_normal = training(g2sf, net)
    found = {
        "loss_scaling": scale_loss(scales, is_normal),
        "loss_perm": mismatch_loss(mismatched(g2sf, net)),
        "loss_const": consistency_loss(*ranks_of_training(g2sf, net), reference=True),
        "loss_l1": net.penalty(),
        "loss_l2": torch.stack([net.get_submodule(layer).weight.square().sum() for layer in LAYERS]).sum() / 2,
    }
    for key, value in found.items():
        assert float(value) == pytest.approx(float(g2sf[key]), rel=1e-4), key
    total = 3 * found["loss_scaling"] + 20 * found["loss_perm"] + 40 * found["loss_const"] + 5e-4 * found["loss_l1"]
    total += separation_loss(fused, is_normal, float(g2sf["criterion_margin"])) + 10 * margin_loss(fused, is_normal)
    assert float(total) == pytest.approx(float(g2sf["loss_total"]), rel=1e-4)


def test_consistency_without_the_broadcast_is_the_mean_over_patches(g2sf, net):
    fused, distances = ranks_of_training(g2sf, net)
    half, total = fused.shape[1] // 2, 0.0
    for l, s in zip(fused.double().tolist(), distances.double().mean(2).tolist(), strict=True):  # noqa: E741
        total += sum(max(0.0, l[j] - 1.2 * s[j] / s[0] * l[0]) for j in range(1, half + 1)) / half
        total += sum(max(0.0, l[0] - l[j]) for j in range(half + 1, 2 * half + 1)) / half
    corrected = float(consistency_loss(fused, distances))
    assert corrected == pytest.approx(total / len(fused), rel=1e-4)
    assert not math.isclose(corrected, float(g2sf["loss_const"]), rel_tol=0.01)
