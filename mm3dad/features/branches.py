"""The two branches of `duet`: a sample goes in, patch features with their places come out, scores go back to pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import DataError
from mm3dad.features.aggregate import aggregate_map, aggregate_surface
from mm3dad.features.points import (
    FPFH_STATISTICS,
    PointGroups,
    describe_groups,
    encode_groups,
    group_points,
    measure_relief,
    spread_to_points,
    thin_points,
)
from mm3dad.features.rgb import RGBExtractor, resize_image, stack_layers
from mm3dad.features.weights import TABLE, cache_folder, count_bytes, describe
from mm3dad.nets.graph import Graph
from mm3dad.types import Sample

# Spread of a relief channel beside that of the whole FPFH block: enough to see a wide flat dent, too little to blur the rest.
RELIEF_WEIGHT = 0.12


@dataclass(frozen=True)
class Patches:
    """The patch features of one modality of one sample.

    Args:
        features: (P, C) float32.
        place: (P, 2) int64, row and column of the cell of `patch_grid` that holds the patch's centre, whatever the backbone's stride.
        grid: (h, w) patches of the image.
        centers: (P, 3) float32, metres, the centre of each group (point branch only).
    """

    features: Tensor
    place: Tensor
    grid: tuple[int, int]
    centers: Tensor | None = None


class RGBBranch:
    """Layers of a timm backbone on one grid, smoothed by similarity-weighted aggregation (MuSc-V2; multimodal sheet, 7.3).

    Args:
        image_size: side of the square with as many pixels as the network's input.
        aggregate: replace each patch by the similarity-weighted mean of its neighbourhood.
    """

    def __init__(
        self, backbone: str, layers: Sequence[int], weights: str, image_size: int, aggregate: bool, device: str = "cpu", seed: int = 0
    ) -> None:
        self.extractor = RGBExtractor(backbone, layers, weights, device, seed)
        self.image_size, self.aggregate = image_size, aggregate

    @property
    def weights(self) -> list[dict[str, Any]]:
        """What a result says of the backbone's weights."""
        return [self.extractor.description]

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the backbone's parameters."""
        return self.extractor.parameter_bytes

    @property
    def blocks(self) -> tuple[tuple[int, float], ...]:
        """How a bank scales the channels: empty, each by its own spread."""
        return ()

    def graph(self, size: tuple[int, int]) -> Graph:
        """Return the backbone as a graph for samples of (H, W) pixels."""
        return self.extractor.graph(size, self.image_size)

    def describe(self, samples: Sequence[Sample]) -> list[Patches]:
        """Return the patches of each sample's image."""
        images = []
        for sample in samples:
            assert sample.rgb is not None
            images.append(resize_image(sample.rgb, self.extractor.input_size(sample.size, self.image_size)))
        grids = [patch_grid(sample.size, self.image_size) for sample in samples]
        return [self._arrange(maps, cells) for maps, cells in zip(self.extractor.extract(images), grids, strict=True)]

    def _arrange(self, maps: list[Tensor], cells: tuple[int, int]) -> Patches:
        grid = (int(maps[0].shape[1]), int(maps[0].shape[2]))
        features = stack_layers([_aggregate(layer) if self.aggregate else layer for layer in maps], grid)
        rows, columns = ((2 * torch.arange(n, device=features.device) + 1) * cell // (2 * n) for n, cell in zip(grid, cells, strict=True))
        place = torch.stack([rows.repeat_interleave(grid[1]), columns.repeat(grid[0])], dim=1)
        return Patches(features.flatten(1).T.contiguous().cpu(), place.cpu(), grid)

    def to_map(self, scores: Tensor, patches: Patches, sample: Sample) -> Tensor:
        """Carry (P,) patch scores to the sample's (H, W) pixels, bilinear."""
        return F.interpolate(scores.view(1, 1, *patches.grid), size=sample.size, mode="bilinear")[0, 0]


class PointBranch:
    """Farthest centres, iterative point grouping and a description of each group (design, part 4.2).

    Args:
        kind: "fpfh" (FPFH statistics, no weights) or "point_mae" (tokens of a Point-MAE encoder).
        weights: path of a Point-MAE checkpoint, or "default" for the local cache.
        image_size: the patch grid has image_size / 8 cells a side, as that of an image.
        centers, group_size, max_points: groups per cloud, points per group, points kept of a cloud.
        group: follow the surface (iterative grouping) instead of plain nearest neighbours.
        aggregate: replace each flat group by the similarity-weighted mean along the surface.
    """

    def __init__(
        self, kind: str, weights: str, image_size: int, centers: int, group_size: int, max_points: int, group: bool, aggregate: bool
    ) -> None:
        self.image_size, self.centers, self.group_size, self.max_points = image_size, centers, group_size, max_points
        self.group, self.aggregate = group, aggregate
        self._net, self.weights = (None, []) if kind == "fpfh" else load_point_net(weights)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the encoder's parameters, 0 without one."""
        return 0 if self._net is None else count_bytes(self._net)

    @property
    def blocks(self) -> tuple[tuple[int, float], ...]:
        """How a bank scales the channels: (width, weight) of blocks that share one spread.

        The bins of FPFH are commensurable and share theirs; relief, in metres, comes in with a small weight of its own.
        """
        relief = ((1, RELIEF_WEIGHT),) * 3
        width = FPFH_STATISTICS if self._net is None else self._net.norm.normalized_shape[0] * len(TABLE["point_mae"].layers)
        return ((width, 1.0), *relief)

    def graph(self, size: tuple[int, int]) -> Graph | None:
        """Return the encoder as a graph; None where there is none, as with FPFH."""
        return None if self._net is None else graph_points(self._net, TABLE["point_mae"].layers, self.centers, self.group_size)

    def describe(self, samples: Sequence[Sample]) -> list[Patches]:
        """Return the group features of each sample's cloud.

        Raises:
            DataError: no valid point, or fewer points than one group.
        """
        return [self._describe_one(sample) for sample in samples]

    def group_sample(self, sample: Sample) -> PointGroups:
        """Return the point groups of a sample's cloud.

        Raises:
            DataError: no valid point, or fewer points than one group; the message names the sample.
        """
        assert sample.xyz is not None and sample.valid is not None
        try:
            points, pixel = thin_points(sample.xyz, sample.valid, self.max_points)
            return group_points(points, pixel, self.centers, self.group_size, self.group)
        except DataError as error:
            raise DataError(f"sample {sample.meta.id!r}: {error}") from None

    def _describe_one(self, sample: Sample) -> Patches:
        groups = self.group_sample(sample)
        centers = groups.points[groups.center]
        features = describe_groups(groups) if self._net is None else encode_groups(groups, self._net, TABLE["point_mae"].layers)
        if self.aggregate:
            features = aggregate_surface(features, centers, groups.curvature, degrees=(5,))
        features = torch.cat([features.float(), measure_relief(centers)], dim=1)
        height, width = sample.size
        if height == 1:
            grid, cells = (1, self.centers), torch.stack([torch.zeros_like(groups.center), torch.arange(len(groups.center))], dim=1)
        else:
            grid = patch_grid(sample.size, self.image_size)
            center = groups.pixel[groups.center]
            cells = torch.stack([center // width * grid[0] // height, center % width * grid[1] // width], dim=1)
        return Patches(features, cells, grid, centers)

    def to_map(self, scores: Tensor, patches: Patches, sample: Sample) -> Tensor:
        """Carry (G,) group scores to the valid pixels of (H, W) by their nearest centres; 0 where nothing was measured.

        Large clouds are answered on a sub-grid of about 224 x 224 pixels and interpolated between its valid pixels: centres lie
        several of its cells apart, so nothing finer is lost.
        """
        assert sample.xyz is not None and sample.valid is not None and patches.centers is not None
        height, width = sample.size
        step = max(1, round((height * width) ** 0.5 / 224)) if height > 1 else 1
        xyz, valid = sample.xyz[:, ::step, ::step], sample.valid[::step, ::step]
        coarse = torch.zeros(2, *valid.shape)
        coarse[0, valid] = spread_to_points(scores[:, None], patches.centers, xyz.permute(1, 2, 0)[valid])[:, 0].float()
        coarse[1] = valid.float()
        if step == 1:
            return coarse[0]
        value, weight = F.interpolate(coarse[None], size=sample.size, mode="bilinear")[0]
        return torch.where(sample.valid & (weight > 0), value / weight.clamp_min(1e-6), 0.0)


def _aggregate(layer: Tensor) -> Tensor:
    """Aggregate a (C, h, w) layer with features of mean length 1, where exp(-distance) tells like from unlike."""
    length = layer.norm(dim=0).mean().clamp_min(torch.finfo(layer.dtype).tiny)
    return aggregate_map(layer / length) * length


def patch_grid(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Return the (h, w) grid of stride-8 patches for an image of (H, W) brought to image_size^2 pixels."""
    scale = image_size / (size[0] * size[1]) ** 0.5
    return max(1, round(size[0] * scale / 32)) * 4, max(1, round(size[1] * scale / 32)) * 4


def augment(sample: Sample, quarter_turns: int, mirror: bool = False) -> Sample:
    """Turn a sample by quarter turns (and mirror it) on its grid: its image and the order of its points, not their places."""

    def turn(array: Tensor | None) -> Tensor | None:
        if array is None:
            return None
        turned = torch.rot90(array, quarter_turns, dims=(-2, -1))
        return (turned.flip(-1) if mirror else turned).contiguous()

    meta = replace(sample.meta, id=f"{sample.meta.id}+{quarter_turns}{'m' if mirror else ''}")
    return Sample(turn(sample.rgb), turn(sample.xyz), turn(sample.valid), turn(sample.mask), sample.label, meta)


def graph_points(net: nn.Module, layers: Sequence[int], groups: int, size: int) -> Graph:
    """Return a point encoder as a graph of one cloud: groups (G, size, 3) and centres (G, 3) to tokens (G, dim), one per layer."""
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "groups": 0.1 * torch.randn(groups, size, 3, generator=generator),
        "centers": torch.rand(groups, 3, generator=generator) * 2 - 1,
    }
    note = {
        "input": "groups (G, size, 3) float32, points minus the centre of their group; centers (G, 3); both in a unit sphere, not metres",
        "output": "one (G, dim) float32 array of tokens per block of the encoder",
        "layers": list(layers),
    }
    return Graph("xyz", _Encoding(net, layers).eval().cpu(), inputs, tuple(f"block_{n}" for n in layers), note)


class _Encoding(nn.Module):
    """An encoder with the blocks to read fixed."""

    def __init__(self, net: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.net, self.layers = copy.deepcopy(net), tuple(layers)

    def forward(self, groups: Tensor, centers: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.net(groups, centers, self.layers))


def load_point_net(weights: str) -> tuple[Any, list[dict[str, Any]]]:
    from mm3dad.nets.point_transformer import load_point_mae

    row = TABLE["point_mae"]
    path = cache_folder() / f"{row.name}.pth" if weights == "default" else Path(weights)
    return load_point_mae(path), [describe(replace(row, sha256=""), path)]
