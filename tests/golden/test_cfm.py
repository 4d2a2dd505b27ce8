"""Published numbers of crossmodal feature mapping, at its 224 x 224 (golden file cfm)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm3dad.features.align import pool_map, scatter_points
from mm3dad.features.rgb import stack_layers
from mm3dad.fusion.mapping import join_product, mapping_residual, published_divisors
from mm3dad.nets.mapping import CrossMapping
from mm3dad.ops import three_interpolate
from mm3dad.scoring.maps import smooth_boxes

T4 = {"rtol": 1e-4, "atol": 1e-6}
T3 = {"rtol": 1e-3, "atol": 1e-3}  # the published interpolation is in single precision (golden README, finding 1)


@pytest.fixture(scope="module")
def cfm(golden):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in golden("cfm").items()}


@pytest.fixture(scope="module")
def side(cfm):
    return len(cfm["product_map"])


@pytest.fixture(scope="module")
def rgb(cfm, side):
    return stack_layers([cfm["rgb_map"]], (side, side)).flatten(1).T


@pytest.fixture(scope="module")
def xyz(cfm, side):
    values = three_interpolate(cfm["valid_xyz"], cfm["centers"], cfm["center_features"])
    return pool_map(scatter_points(values, cfm["valid_index"], side), side).flatten(1).T


def weights_of(cfm, name):
    order = [key.split(".")[1] for key in cfm if key.startswith(f"{name}.") and key.endswith("weight")]
    return [cfm[f"{name}.{layer}.{part}"] for layer in order for part in ("weight", "bias")]


def load(net, weights):
    own = net.state_dict()
    net.load_state_dict(dict(zip(own, weights, strict=True)))


@pytest.fixture(scope="module")
def net(cfm):
    made = CrossMapping(len(cfm["rgb_map"]), cfm["center_features"].shape[1])
    load(made.to_xyz, weights_of(cfm, "2dto3d"))
    load(made.to_rgb, weights_of(cfm, "3dto2d"))
    return made


@pytest.fixture(scope="module")
@torch.no_grad()
def residuals(net, rgb, xyz):
    # The published test of the background: a feature that sums to 0.
    held = xyz.sum(1) != 0
    predicted = net(rgb, xyz)
    return mapping_residual(predicted[0], rgb, held), mapping_residual(predicted[1], xyz, held)


def test_features_at_pixels(cfm, rgb, xyz):
    rows = cfm["sample_rows"]
    np.testing.assert_allclose(rgb[rows], cfm["rgb_patch_rows"], **T4)
    np.testing.assert_allclose(xyz[rows], cfm["xyz_patch_rows"], **T3)


@torch.no_grad()
def test_predictions(cfm, net):
    rgb, xyz = net(cfm["rgb_patch_rows"], cfm["xyz_patch_rows"])
    np.testing.assert_allclose(xyz, cfm["pred_3d_rows"], **T4)
    np.testing.assert_allclose(rgb, cfm["pred_2d_rows"], **T3)


@torch.no_grad()
def test_predictions_of_the_large_variant(cfm):
    weights = weights_of(cfm, "big2dto3d")
    made = CrossMapping(len(cfm["rgb_map"]), cfm["center_features"].shape[1], layers=len(weights) // 2)
    load(made.to_xyz, weights)
    np.testing.assert_allclose(made.to_xyz(cfm["rgb_patch_rows"]), cfm["big_pred_3d_rows"], **T4)


def test_residuals_and_their_product(cfm, residuals, side):
    for found, name in zip(residuals, ("psi_2d", "psi_3d"), strict=True):
        np.testing.assert_allclose(found.view(side, side), cfm[name], rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(join_product([cfm["psi_2d"], cfm["psi_3d"]]), cfm["product_map"], **T4)


def test_smoothed_map(cfm):
    np.testing.assert_allclose(smooth_boxes(cfm["product_map"], zero_padded=True), cfm["smoothed_map"], **T4)


def test_corrected_smoothing_keeps_the_border(cfm):
    found = smooth_boxes(torch.ones_like(cfm["product_map"]))
    np.testing.assert_allclose(found, torch.ones_like(found), **T4)
    assert float(smooth_boxes(torch.ones_like(found), zero_padded=True).min()) < 0.5


def test_three_divisors(cfm):
    heat = smooth_boxes(cfm["product_map"], zero_padded=True)
    aupro, pauroc, image = published_divisors(heat)
    np.testing.assert_allclose([aupro, pauroc], [cfm["aupro_scale"], cfm["pauroc_scale"]], **T4)
    peak = float(heat.max())
    found = peak / aupro, peak / pauroc, peak / image
    np.testing.assert_allclose(found, [cfm[key] for key in ("aupro_map_max", "pauroc_map_max", "image_score")], **T4)


def test_every_key_is_read(cfm):
    read = {"valid_index", "valid_xyz", "centers", "center_features", "rgb_map", "sample_rows", "psi_2d", "psi_3d", "product_map"}
    read |= {"smoothed_map", "aupro_scale", "pauroc_scale", "image_score", "aupro_map_max", "pauroc_map_max"}
    read |= {f"{name}_rows" for name in ("rgb_patch", "xyz_patch", "pred_3d", "pred_2d", "big_pred_3d")}
    assert {key for key in cfm if "2dto3d." not in key and "3dto2d." not in key} == read
