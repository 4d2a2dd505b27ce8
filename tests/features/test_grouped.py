"""Layers that stay apart: point groups and aggregated image patches."""

from __future__ import annotations

import pytest
import torch

from mm3dad.errors import DataError
from mm3dad.features.aggregate import aggregate_map
from mm3dad.features.grouped import GroupBranch, aggregate_tokens
from mm3dad.features.tokens import Tokens
from mm3dad.nets.point_transformer import PointTransformer
from tests.methods.parts import make_cloud, make_sample


def branch(kind="fpfh", weights="default", centers=32, aggregate=True):
    return GroupBranch(kind, weights, 64, centers, 16, 600, group=True, aggregate=aggregate)


def test_groups_lie_in_their_patches():
    sample = make_sample(0)
    groups = branch().describe_layers(sample)
    assert len(groups.layers) == 1 and groups.layers[0].shape == (32, 66) and groups.centers.shape == (32, 3)
    assert torch.equal(sample.xyz.flatten(1).T[groups.pixel], groups.centers)
    patch = groups.patch_of_center(sample.size, (8, 8))
    assert torch.equal(patch, groups.pixel // 64 // 8 * 8 + groups.pixel % 64 // 8)


def test_point_mae_layers_stay_apart(tmp_path):
    torch.manual_seed(0)
    state = {f"MAE_encoder.{name}": value for name, value in PointTransformer().state_dict().items()}
    torch.save({"base_model": state}, tmp_path / "mae.pth")
    found = branch("point_mae", str(tmp_path / "mae.pth")).describe_layers(make_sample(0))
    assert [layer.shape for layer in found.layers] == [(32, 384)] * 3


def test_a_small_cloud_repeats_its_groups():
    sample = make_cloud(0, count=20)
    groups = branch(centers=32).describe_layers(sample)
    found = int(sample.valid.sum())
    assert len(groups.layers[0]) == 32 and torch.equal(groups.layers[0][found:], groups.layers[0][: 32 - found])
    heat = branch().spread(torch.arange(32.0), groups.centers, sample)
    assert heat.shape == sample.size
    with pytest.raises(DataError, match="train/good/000.*fewer than one group"):
        branch().describe_layers(make_cloud(0, count=10))


def test_scores_spread_over_measured_pixels():
    sample = make_sample(0)
    groups = branch().describe_layers(sample)
    heat = branch().spread(torch.ones(32), groups.centers, sample)
    assert torch.allclose(heat[sample.valid], torch.ones(1)) and bool((heat[~sample.valid] == 0).all())


def test_tokens_are_aggregated_layer_by_layer():
    layers = [torch.rand(12, width, generator=torch.Generator().manual_seed(width)) for width in (3, 5)]
    tokens = Tokens(torch.zeros(5), layers, (3, 4))
    for published in (False, True):
        found = aggregate_tokens(tokens, published)
        for layer, result in zip(layers, found, strict=True):
            unit = layer if published else layer / layer.norm(dim=1).mean()
            expected = aggregate_map(unit.T.reshape(-1, 3, 4)).flatten(1).T
            assert torch.allclose(result, expected / expected.norm(dim=1, keepdim=True), atol=1e-6)
    # Unscaled, long features see no neighbour as alike: the aggregation is lost. That is why they are scaled.
    long = Tokens(torch.zeros(5), [50 * layers[0]], (3, 4))
    centre = torch.nn.functional.normalize(layers[0], dim=1)
    assert torch.allclose(aggregate_tokens(long, published=True)[0], centre, atol=1e-2)
    assert torch.allclose(aggregate_tokens(long)[0], aggregate_tokens(tokens)[0], atol=1e-5)
