"""The samples of a set that judges itself: their layers in both modalities, and where patches and groups lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mm3dad.errors import DataError
from mm3dad.features.cache import Describes, keep_features
from mm3dad.features.grouped import GroupBranch, GroupLayers, LayeredGroups, aggregate_tokens
from mm3dad.features.tokens import TokenExtractor, Tokens
from mm3dad.methods._config import MODALITIES
from mm3dad.types import Sample

PUBLISHED_LAYERS = {"dino_vitb8": (3, 7, 11)}


@dataclass(frozen=True)
class Described:
    """One sample: its layers by modality, each (P, C) in half precision, and where its patches and groups lie."""

    sample: str
    size: tuple[int, int]
    layers: dict[str, list[Tensor]]
    grid: tuple[int, int] = (1, 1)
    centers: Tensor = field(default_factory=lambda: torch.empty(0, 3))
    patch_of_center: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


class SetSource:
    """The extractors of both modalities.

    Args:
        config: muscv2's settings.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def weights(self) -> list[dict[str, Any]]:
        """What a result says of the weights."""
        names = self.config.modalities or MODALITIES
        return [*(self.images.weights if "rgb" in names else []), *(self.points.weights if "xyz" in names else [])]

    @cached_property
    def images(self) -> Describes[Tokens]:
        """The image encoder, made when it is first needed."""
        c = self.config
        layers = c.layers or PUBLISHED_LAYERS.get(c.backbone, ())
        made = TokenExtractor(c.backbone, layers, c.weights, c.image_size, c.device, c.seed)
        return keep_features(made, Tokens, c.feature_cache, "tokens", c.backbone, layers, c.image_size, 1.0)

    @cached_property
    def points(self) -> GroupBranch:
        """The point groups, made when they are first needed."""
        c = self.config
        cloud = c.points, c.point_weights, c.image_size, c.centers, c.group_size, c.max_points
        return GroupBranch(*cloud, group=True, aggregate=c.aggregate)

    @cached_property
    def groups(self) -> Describes[GroupLayers]:
        """What describes the point groups, from the cache where there is one."""
        c = self.config
        cloud = c.points, c.image_size, c.centers, c.group_size, c.max_points, c.aggregate
        return keep_features(LayeredGroups(self.points), GroupLayers, c.feature_cache, "groups", *cloud)

    def describe(self, sample: Sample, first: Described | None) -> Described:
        """Extract the layers of one sample; it must be of the kind of the first one.

        Raises:
            DataError: it lacks a modality or has another size than the first, or the first lacks a modality that it has.
        """
        c = self.config
        names = c.modalities or (tuple(first.layers) if first else sample.modalities)
        for name in MODALITIES:
            if name in names and name not in sample.modalities:
                raise DataError(f"sample {sample.meta.id!r} has no {name}; complete it, or set modalities={sample.modalities[0]}")
            if first and not c.modalities and name in sample.modalities and name not in names:
                raise DataError(f"sample {first.sample!r} has no {name}, others have; complete it, or set modalities={','.join(names)}")
        if first and sample.meta.organised and sample.size != first.size:
            raise DataError(f"samples of a set must have one size, got {first.size} and {sample.size} ({sample.meta.id!r}); resize them")
        layers: dict[str, list[Tensor]] = {}
        place: dict[str, Any] = {}
        grid = (1, 1)
        if "rgb" in names:
            tokens = self.images.describe([sample])[0]
            grid = tokens.grid
            found = aggregate_tokens(tokens, c.reference) if c.aggregate else [normalize(layer, dim=1) for layer in tokens.layers]
            layers["rgb"] = [layer.half() for layer in found]
        if "xyz" in names:
            groups = self.groups.describe([sample])[0]
            layers["xyz"] = [layer.half() for layer in groups.layers]
            place = {"centers": groups.centers, "patch_of_center": groups.patch_of_center(sample.size, grid)}
        return Described(sample.meta.id, sample.size, layers, grid, **place)
