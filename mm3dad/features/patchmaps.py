"""Patch features of an image for methods with flat banks: layers joined cell by cell, each cell with its surroundings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ConfigError, DataError
from mm3dad.features.align import pool_map, resize_map
from mm3dad.features.branches import Patches, patch_grid
from mm3dad.features.pixelmap import PointCells
from mm3dad.features.rgb import RGBExtractor, resize_image, stack_layers
from mm3dad.types import Sample

Join = Callable[[list[Tensor], tuple[int, int]], Tensor]


class ImagePatches:
    """A timm backbone whose layers are joined to one map; transformers give their patch tokens through the final norm.

    Args:
        join: makes one (C, h, w) map of the layers' maps; it is also given the (h, w) grid of stride-8 cells of the image.
        image_size: side of the square with as many pixels as the network's input.
        backbone, layers, weights, device, seed: as `RGBExtractor`.
    """

    def __init__(
        self, join: Join, image_size: int, backbone: str, layers: Sequence[int], weights: str, device: str = "cpu", seed: int = 0
    ) -> None:
        self.extractor = RGBExtractor(backbone, layers, weights, device, seed)
        self.join, self.image_size = join, image_size

    @property
    def weights(self) -> list[dict[str, Any]]:
        """What a result says of the backbone's weights."""
        return [self.extractor.description]

    def describe(self, samples: Sequence[Sample]) -> list[Patches]:
        """Return the patches of each sample's image.

        Raises:
            DataError: a sample without an image.
        """
        return [self._describe_one(sample) for sample in samples]

    def _describe_one(self, sample: Sample) -> Patches:
        if sample.rgb is None:
            raise DataError(f"sample {sample.meta.id!r} has no rgb, which this model was made for; give the image")
        size = self.extractor.input_size(sample.size, self.image_size)
        maps = self.extractor.extract_tokens([resize_image(sample.rgb, size)])[0][1]
        return as_patches(self.join(maps, patch_grid(sample.size, self.image_size)))


def as_patches(features: Tensor) -> Patches:
    """Turn a (C, h, w) map into row-major patches."""
    grid = int(features.shape[1]), int(features.shape[2])
    return Patches(features.flatten(1).T.contiguous().cpu(), grid_places(grid), grid)


def grid_places(grid: tuple[int, int]) -> Tensor:
    """Return (h * w, 2) int64, row and column of each cell, row-major."""
    return torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).view(-1, 2)


def pool_layers(layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Average each layer over 3 x 3 cells, bring it to the grid by averages of bins and stack: (sum C, h, w) (BTF; multimodal sheet, 3).

    A layer with fewer than 3 cells a side is only brought to the grid.
    """
    return torch.cat([pool_map(layer, grid) if min(layer.shape[1:]) >= 3 else resize_map(layer, grid) for layer in layers])


def join_finest(layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Stack the layers on the grid of the finest of them: (sum C, h, w). The image's own grid plays no part (M3DM; 4.1)."""
    return stack_layers(layers, max((int(layer.shape[1]), int(layer.shape[2])) for layer in layers))


def embed_layers(layers: Sequence[Tensor], pretrain: int = 0, target: int = 0) -> Tensor:
    """Describe each cell of the first layer by the 3 x 3 surroundings of it in every layer, as PatchCore does.

    The values of the surroundings, channel by channel, zeros beyond the border, are averaged down to `pretrain` numbers a layer;
    later layers are brought to the first one's grid (bilinear); all numbers of a cell are averaged down to `target`.
    With 0 for both each channel becomes the mean of its surroundings, and a small network is not blown up.
    Source: PatchCore (CVPR 2022), locally aware patch features; golden README, patchcore.

    Args:
        layers: maps (C, h, w) floating, the finest first.
        pretrain: numbers per layer; 0 takes each layer's channels.
        target: numbers per cell; 0 takes all there are.
    Returns:
        (C', h, w) on the first layer's grid.
    Raises:
        ConfigError: no layer, or a negative size.
    """
    if not layers or pretrain < 0 or target < 0:
        raise ConfigError(f"embed_layers needs at least one layer and sizes >= 0, got {len(layers)} layers, {pretrain} and {target}")
    grid = int(layers[0].shape[1]), int(layers[0].shape[2])
    parts = []
    for layer in layers:
        channels, height, width = layer.shape
        around = F.unfold(layer[None], kernel_size=3, padding=1).view(1, channels * 9, height, width)
        if (height, width) != grid:
            around = F.interpolate(around, size=grid, mode="bilinear")
        parts.append(F.adaptive_avg_pool1d(around[0].flatten(1).T[:, None], pretrain or channels)[:, 0])
    joined = torch.cat(parts, dim=1)
    if target:
        joined = F.adaptive_avg_pool1d(joined[:, None], target)[:, 0]
    return joined.T.reshape(-1, *grid)


class PointPatches:
    """Point features on the grid of stride-8 cells of the image, so that they meet its patches cell by cell.

    Args:
        cells: the extractor of point features.
        image_size: the grid has image_size / 8 cells a side, as that of `ImagePatches`.
        fineness: cells of it a side for one of the image (2: twice the grid of the image, as M3DM's 56 beside 28).
    """

    def __init__(self, cells: PointCells, image_size: int, fineness: int = 1) -> None:
        self.cells, self.image_size, self.fineness = cells, image_size, fineness

    @property
    def weights(self) -> list[dict[str, Any]]:
        """What a result says of the point encoder's weights."""
        return self.cells.weights

    def describe(self, samples: Sequence[Sample]) -> list[Patches]:
        """Return the cells of each sample's cloud, zeros where a cell has no point.

        Raises:
            DataError: a sample without a cloud, or a cloud that `PointCells` cannot use.
        """
        found = []
        for sample in samples:
            if sample.xyz is None:
                raise DataError(f"sample {sample.meta.id!r} has no xyz, which this model was made for; give the point cloud")
            height, width = patch_grid(sample.size, self.image_size)
            grid = height * self.fineness, width * self.fineness
            found.append(Patches(self.cells.describe([sample], [grid])[0].features, grid_places(grid), grid))
        return found
