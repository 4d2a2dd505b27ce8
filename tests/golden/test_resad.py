"""Published numbers of ResAD: residuals, constraintor, codebook, histogram matching, flow, every loss, maps (golden file resad)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from mm3dad.nets.constraintor import Codebook, Constraintor, occ_loss, orthogonal_penalty, plain_occ_loss, shell_occ_loss
from mm3dad.nets.flow import ConditionalFlow, boundary_losses, encode_position, log_likelihoods, normal_boundary, separation_focal
from mm3dad.scoring.residual import likelihood_map, match_histogram, match_references, take_residual

T4 = {"rtol": 1e-4, "atol": 1e-6}
LEVELS = range(3)


@pytest.fixture(scope="module")
def resad(golden):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in golden("resad").items()}


def to_rows(maps):
    """(B, C, h, w) -> (B h w, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def to_maps(rows, like):
    count, _, height, width = like.shape
    return rows.view(count, height, width, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("level", LEVELS)
def test_residuals(resad, level):
    features, references = resad[f"feature_{level}"], resad[f"reference_{level}"]
    rows = to_rows(features)
    found = match_references(rows, references)
    assert torch.equal(found, resad[f"match_index_cosine_{level}"])
    np.testing.assert_allclose(to_maps(references[found], features), resad[f"matched_cosine_{level}"], **T4)
    assert torch.equal(match_references(rows, references, cosine=False), resad[f"paper_match_index_l2_{level}"])
    for key, options in (("residual_squared", {}), ("residual_signed", {"squared": False})):
        np.testing.assert_allclose(to_maps(take_residual(rows, references, **options), features), resad[f"{key}_{level}"], **T4)
    paper = take_residual(rows, references, cosine=False, squared=False)
    np.testing.assert_allclose(to_maps(paper, features), resad[f"paper_residual_l2_{level}"], **T4)


@pytest.mark.parametrize("level", LEVELS)
@torch.no_grad()
def test_constraintor(resad, level):
    residuals = resad[f"residual_squared_{level}"]
    net = Constraintor(residuals.shape[1]).eval()
    start = f"con.l{level + 1}_proj."
    net.load_state_dict({key.removeprefix(start): value for key, value in resad.items() if key.startswith(start)}, strict=False)
    np.testing.assert_allclose(net(residuals), resad[f"constraintor_out_{level}"], **T4)


def codebook_of(resad, level):
    codes = resad[f"vq.vq{level + 1}.embedding.weight"]
    book = Codebook(codes.shape[1], len(codes))
    book.codes.data.copy_(codes)
    return book


@pytest.mark.parametrize("level", LEVELS)
@torch.no_grad()
def test_codes_and_histograms(resad, level):
    residuals = resad[f"residual_squared_{level}"]
    quantised = to_maps(codebook_of(resad, level)(to_rows(residuals)), residuals)
    np.testing.assert_allclose(quantised, resad[f"vq_quantised_{level}"], **T4)
    for one, target, expected in zip(residuals, quantised, resad[f"efdm_alpha04_{level}"], strict=True):
        moved = match_histogram(one.flatten(1).T, target.flatten(1).T, 0.4)
        np.testing.assert_allclose(moved.T.reshape(expected.shape), expected, **T4)


@torch.no_grad()
def test_codebook_loss(resad):
    total = 0.0
    for level in LEVELS:
        is_normal = resad[f"vq_mask_{level}"].flatten() == 0
        total += float(codebook_of(resad, level).loss(to_rows(resad[f"residual_squared_{level}"])[is_normal]))
    assert total == pytest.approx(float(resad["vq_loss"]), rel=1e-4)


def test_constraintor_losses(resad):
    rows, target, is_normal = resad["loss_feature"], resad["loss_target"], resad["loss_mask"] == 0
    everything = torch.ones_like(is_normal)
    found = {
        "occ_log_barrier_bi": occ_loss(rows, target, is_normal),
        "occ_log_barrier_bi_no_anomaly": occ_loss(rows, target, everything),
        "occ_log_barrier": shell_occ_loss(rows, target, is_normal, inner=False),
        "occ_bi": shell_occ_loss(rows, target, is_normal, barrier=False),
        "occ_plain": plain_occ_loss(rows, target, is_normal),
        "orthogonal": orthogonal_penalty(rows[is_normal]),
    }
    change = (rows - target)[~is_normal].square().mean()
    found["occ_log_barrier_bi_normal"] = shell_occ_loss(rows, target, is_normal) - change
    found["occ_log_barrier_bi_anomaly"] = found["occ_log_barrier_bi"] - found["occ_log_barrier_bi_normal"]
    for key, value in found.items():
        assert float(value) == pytest.approx(float(resad[key]), rel=1e-4), key


def test_boundary(resad):
    likelihood, is_normal = resad["logp"], resad["loss_mask"] == 0
    boundary = normal_boundary(likelihood[is_normal])
    assert float(boundary) == pytest.approx(float(resad["normal_boundary"]), rel=1e-5)
    scaled = torch.stack([boundary / 10, boundary / 10 - 0.1])
    np.testing.assert_allclose(scaled, resad["logp_boundary_normalised"], **T4)
    low, high = boundary_losses(likelihood, is_normal, boundary)
    assert float(low) == pytest.approx(float(resad["bgspp_normal"]), rel=1e-4)
    assert float(high) == pytest.approx(float(resad["bgspp_anomaly"]), rel=1e-4)
    average = torch.zeros(())
    for factor in (1.0, 1.1, 1.2):
        average.lerp_(factor * boundary, 1 - 0.9)
    assert float(average) == pytest.approx(float(resad["boundary_ema_3"]), rel=1e-4)


def test_flow_losses(resad):
    is_normal = resad["loss_mask"] == 0
    normal, anomalous = log_likelihoods(resad["flow_z"], resad["flow_logdet"])
    np.testing.assert_allclose(normal, resad["flow_logp_normal"], **T4)
    np.testing.assert_allclose(anomalous, resad["flow_logp_anomaly"], **T4)
    focal = separation_focal(normal, anomalous, is_normal)
    total = focal - normal[is_normal].mean() - anomalous[~is_normal].mean()
    found = {
        "flow_focal": focal,
        "flow_ml": -F.logsigmoid(normal[is_normal]).mean(),
        "flow_ml_anomaly": -F.logsigmoid(anomalous[~is_normal]).mean(),
        "flow_loss": total,
        "flow_loss_boundary": total + sum(boundary_losses(normal, is_normal, resad["normal_boundary"])),
    }
    for key, value in found.items():
        assert float(value) == pytest.approx(float(resad[key]), rel=1e-4), key


def test_position_code(resad):
    channels, height, width = resad["position_code"].shape
    np.testing.assert_allclose(encode_position(channels, (height, width)), resad["position_code"], **T4)


@torch.no_grad()
def test_flow(resad):
    values, condition = resad["flow_x"], resad["flow_cond"]
    count = sum(key.endswith(".w_perm") for key in resad)
    flow = ConditionalFlow(values.shape[1], condition.shape[1], count).eval()
    names = {"scale": "global_scale", "offset": "global_offset"}
    state = {}
    for number in range(count):
        start = f"flow.module_list.{number}."
        state |= {f"blocks.{number}.{own}": resad[start + theirs].view(-1) for own, theirs in names.items()}
        rotation = resad[start + "w_perm"]
        np.testing.assert_allclose(rotation.T, resad[start + "w_perm_inv"], rtol=1e-4, atol=1e-5)  # what `inverse` relies on
        state[f"blocks.{number}.rotation"] = rotation
        state |= {f"blocks.{number}.subnet.{key}": resad[f"{start}subnet.{key}"] for key in ("0.weight", "0.bias", "2.weight", "2.bias")}
    flow.load_state_dict(state)
    latents, gains = flow(values, condition)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(latents, resad["flow_out"], **close)
    np.testing.assert_allclose(gains, resad["flow_out_logdet"], **close)
    np.testing.assert_allclose(flow.inverse(latents, condition), values, **close)


def test_maps_and_image_scores(resad):
    size = tuple(resad["score_map"].shape[1:])
    tops = [float(resad[f"map_logp_{level}"].max()) for level in LEVELS]
    images = len(resad["score_map"])
    levels = [([resad[f"map_{kind}_{level}"][i] for level in LEVELS]) for kind in ("logp", "prob") for i in range(images)]
    found = [likelihood_map(levels[i], levels[images + i], size, tops) for i in range(images)]
    sharp = torch.stack([likelihood_map(levels[i], levels[images + i], size, tops, sigma=0.0)[0] for i in range(images)])
    # The published code subtracts from the largest sum of the set, this package from the number of levels, its bound.
    shift = sharp.min()
    close = {"rtol": 1e-4, "atol": 1e-5}
    first, second = torch.stack([one[0] for one in found]) - shift, torch.stack([one[1] for one in found])
    np.testing.assert_allclose(first, resad["score_map_1"], **close)
    np.testing.assert_allclose(second, resad["score_map_2"], **close)
    np.testing.assert_allclose((first + second) / 2, resad["score_map"], **close)
    np.testing.assert_allclose(((first + second) / 2).flatten(1).amax(1), resad["image_score"], **close)
