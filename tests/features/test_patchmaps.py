"""Patch maps of images and clouds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from mm3dad.errors import ConfigError, DataError
from mm3dad.features.align import pool_map
from mm3dad.features.branches import patch_grid
from mm3dad.features.patchmaps import ImagePatches, PointPatches, embed_layers, grid_places, join_finest, pool_layers
from mm3dad.features.pixelmap import PointCells
from tests.methods.parts import make_cloud, make_sample


def make_layers(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 8, 10, generator=generator), torch.randn(10, 4, 5, generator=generator)]


def embed_slowly(layers, pretrain, target):
    """Cell by cell and number by number."""
    height, width = layers[0].shape[1:]
    columns = []
    for layer in layers:
        padded = functional.pad(layer, (1, 1, 1, 1))
        around = torch.stack(
            [padded[:, row : row + layer.shape[1], column : column + layer.shape[2]] for row in range(3) for column in range(3)], dim=1
        )
        around = functional.interpolate(around.flatten(0, 1)[None], size=(height, width), mode="bilinear")[0]
        columns.append([bins(around[:, row, column], pretrain) for row in range(height) for column in range(width)])
    return torch.stack([bins(torch.cat(parts), target) for parts in zip(*columns, strict=True)])


def bins(values, count):
    n = len(values)
    return torch.stack([values[i * n // count : -(-(i + 1) * n // count)].mean() for i in range(count)])


@pytest.mark.parametrize(("pretrain", "target"), [(16, 12), (7, 20), (90, 11)])
def test_embedding_equals_the_slow_one(pretrain, target):
    found = embed_layers(make_layers(), pretrain, target)
    assert found.shape == (target, 8, 10)
    torch.testing.assert_close(found.flatten(1).T, embed_slowly(make_layers(), pretrain, target), rtol=1e-5, atol=1e-5)


def test_without_sizes_each_channel_is_the_mean_of_its_surroundings():
    layers = make_layers()
    found = embed_layers(layers)
    assert found.shape == (16, 8, 10)
    torch.testing.assert_close(found[:6], functional.avg_pool2d(layers[0], 3, stride=1, padding=1))


def test_published_sizes_blow_a_small_network_up():
    # 6 * 9 = 54 numbers are repeated to fill 1024: the published sizes fit wide networks only, so they are not the default.
    found = embed_layers(make_layers()[:1], 1024, 1024).flatten(1)
    assert float((found[1:] == found[:-1]).all(1).float().mean()) > 0.8


def test_one_cell_constant_maps_and_bad_sizes():
    assert embed_layers([torch.ones(3, 1, 1)]).shape == (3, 1, 1)
    even = embed_layers([torch.full((2, 6, 6), 4.0)])
    assert torch.allclose(even[:, 1:-1, 1:-1], torch.tensor(4.0)) and float(even[0, 0, 0]) == pytest.approx(4 * 4 / 9)
    for layers, pretrain in (([], 0), (make_layers(), -1)):
        with pytest.raises(ConfigError, match="at least one layer and sizes >= 0, got"):
            embed_layers(layers, pretrain)


def test_pooled_and_finest_joins():
    layers = make_layers()
    found = pool_layers(layers, (7, 9))
    assert found.shape == (16, 7, 9)
    torch.testing.assert_close(found[6:], pool_map(layers[1], (7, 9)))
    assert pool_layers([torch.ones(2, 2, 6)], (8, 8)).shape == (2, 8, 8)
    assert join_finest(layers[::-1], (1, 1)).shape == (16, 8, 10)


def test_places_are_row_major():
    assert grid_places((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid_places((1, 1)).tolist() == [[0, 0]]


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_both_modalities_share_the_grid(size):
    sample = make_sample(3, size=size)
    image = ImagePatches(pool_layers, 64, "efficientnet_lite0", (), "random").describe([sample])[0]
    cloud = PointPatches(PointCells("fpfh", "default", 32, relief=False), 64).describe([sample])[0]
    assert image.grid == cloud.grid == patch_grid(size, 64)
    assert len(image.features) == len(cloud.features) == len(image.place) and cloud.features.shape[1] == 33
    fine = PointPatches(PointCells("fpfh", "default", 32, relief=False), 64, fineness=2).describe([sample])[0]
    assert fine.grid == (2 * cloud.grid[0], 2 * cloud.grid[1])


@pytest.mark.parametrize("backbone", ["test_vit", "efficientnet_lite0"])
def test_transformers_and_convolutions(backbone):
    found = ImagePatches(join_finest, 64, backbone, (-2, -1), "random").describe([make_sample(0)])[0]
    assert bool(found.features.isfinite().all()) and len(found.features) == found.grid[0] * found.grid[1]


def test_transformer_patches_pass_the_final_norm():
    found = ImagePatches(join_finest, 64, "test_vit", (-1,), "random").describe([make_sample(0)])[0]
    torch.testing.assert_close(found.features.mean(1), torch.zeros(len(found.features)), rtol=0, atol=1e-4)


def test_missing_modalities_are_named():
    image = ImagePatches(pool_layers, 64, "efficientnet_lite0", (), "random")
    cells = PointPatches(PointCells("fpfh", "default", 32), 64)
    with pytest.raises(DataError, match="has no rgb, .*; give the image"):
        image.describe([replace(make_sample(0), rgb=None)])
    with pytest.raises(DataError, match="has no xyz, .*; give the point cloud"):
        cells.describe([replace(make_sample(0), xyz=None, valid=None)])
    with pytest.raises(DataError, match="cloud without a grid"):
        cells.describe([make_cloud(0)])
