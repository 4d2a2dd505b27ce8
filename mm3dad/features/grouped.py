"""Layers of features that stay apart, as mutual scoring compares them: patches of an image and point groups of a cloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mm3dad.features.aggregate import aggregate_map, aggregate_surface
from mm3dad.features.align import patch_of_pixel
from mm3dad.features.branches import Patches, PointBranch
from mm3dad.features.points import describe_groups, encode_groups
from mm3dad.features.tokens import Tokens
from mm3dad.features.weights import TABLE
from mm3dad.types import Sample


@dataclass(frozen=True)
class GroupLayers:
    """The point groups of one cloud.

    Args:
        layers: per layer (G, C) float32.
        centers: (G, 3) float32, metres.
        pixel: (G,) int64, place of each centre in the flattened image.
    """

    layers: list[Tensor]
    centers: Tensor
    pixel: Tensor

    def patch_of_center(self, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Return the image patch (G,) that holds each centre."""
        return patch_of_pixel(self.pixel, size, grid)


class GroupBranch(PointBranch):
    """Point groups whose layers stay apart, aggregated along the surface (MuSc-V2; multimodal sheet, 7.2 and 7.3).

    Arguments as `PointBranch`.
    """

    def describe_layers(self, sample: Sample) -> GroupLayers:
        """Return the groups of a cloud; the last are repeated where it has fewer points than `centers`, so that sets are regular.

        Raises:
            DataError: no valid point, or fewer points than one group.
        """
        groups = self.group_sample(sample)
        if self._net is None:
            layers = [describe_groups(groups)]
        else:
            chosen = TABLE["point_mae"].layers
            layers = list(encode_groups(groups, self._net, chosen).chunk(len(chosen), dim=1))
        centers = groups.points[groups.center]
        if self.aggregate:
            layers = [aggregate_surface(layer, centers, groups.curvature) for layer in layers]
        repeat = torch.arange(self.centers) % len(centers)
        return GroupLayers([layer[repeat].float() for layer in layers], centers[repeat], groups.pixel[groups.center][repeat])

    def spread(self, scores: Tensor, centers: Tensor, sample: Sample) -> Tensor:
        """Carry (G,) group scores to the sample's pixels, 0 where nothing was measured."""
        return self.to_map(scores, Patches(scores[:, None], torch.zeros(len(scores), 2, dtype=torch.int64), (1, 1), centers), sample)


class LayeredGroups:
    """A `GroupBranch` as an extractor of layers, so that they can be kept on disk."""

    def __init__(self, branch: GroupBranch) -> None:
        self._branch = branch

    @property
    def weights(self) -> list[dict[str, Any]]:
        """As the branch's."""
        return self._branch.weights

    def describe(self, samples: Sequence[Sample]) -> list[GroupLayers]:
        """Return the groups of each sample's cloud."""
        return [self._branch.describe_layers(sample) for sample in samples]


def aggregate_tokens(tokens: Tokens, published: bool = False) -> list[Tensor]:
    """Aggregate each layer of an image over its neighbourhoods and bring its patches to unit length: per layer (P, C).

    The weights are exp(-distance), which tells like from unlike only where features have about unit length; so they are brought to
    mean length 1 first. The published form takes them as they come: its LayerNormed tokens lie so far apart that it keeps the centre.

    Args:
        tokens: of one image.
        published: leave the length as it is.
    """
    found = []
    for layer in tokens.layers:
        length = 1.0 if published else layer.norm(dim=1).mean().clamp_min(torch.finfo(layer.dtype).tiny)
        maps = aggregate_map((layer / length).T.reshape(-1, *tokens.grid).contiguous())
        found.append(normalize(maps.flatten(1).T, dim=1))
    return found
