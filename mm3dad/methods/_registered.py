"""Image and point features of the same cells, for methods that compare the modalities cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mm3dad.errors import DataError
from mm3dad.features.branches import Patches
from mm3dad.features.cache import Describes, keep_features
from mm3dad.features.patchmaps import ImagePatches, PointPatches
from mm3dad.features.pixelmap import PointCells, fit_scale
from mm3dad.features.rgb import stack_layers
from mm3dad.methods._config import MODALITIES, check_ranges, option
from mm3dad.types import Sample

Grid = tuple[int, int]
Scale = dict[str, tuple[Tensor, Tensor]]  # modality -> shift and factor of each channel
RANGES = (
    ("image_size", 64, 4096),
    ("fineness", 1, 8),
    ("max_points", 128, 10**7),
    ("centers", 1, 10**6),
    ("group_size", 4, 10**5),
    ("false_alarms", 1e-9, 0.999),
    ("seed", 0, 2**62),
)


@dataclass(frozen=True)
class RegisteredConfig:
    """Settings of the features."""

    image_size: int = option(224, "side of the square with as many pixels as the network's input")
    fineness: int = option(1, "cells a side for one of a stride-8 image grid; published: 8 (224 x 224)")
    backbone: str = option("efficientnet_lite0", "row of `mm3dad list weights`, or any timm architecture; published: dino_vitb8")
    layers: tuple[int, ...] = option((), "layers of the backbone, negative from the end; empty uses the table's")
    weights: str = option("default", "default, the path of a state dict, or random")
    points: Literal["fpfh", "point_mae"] = option("fpfh", "point features: FPFH or Point-MAE tokens; published: point_mae")
    point_weights: str = option("default", "path of a Point-MAE checkpoint, or default for the cache")
    max_points: int = option(10000, "most points of a cloud; reference=true takes all of the square of image_size")
    centers: int = option(1024, "point groups per cloud (Point-MAE)")
    group_size: int = option(128, "points per group (Point-MAE)")
    reference: bool = option(False, "as the published code does it, with its quirks; see the method's page")
    false_alarms: float = option(0.01, "rate of false alarms the threshold aims at")
    feature_cache: str = option("", "folder in which features are kept between runs; empty keeps none")
    seed: int = option(0, "of initial weights, batches and the choice of held-out samples")
    device: str = option("cpu", "torch device of the backbone and of the training")

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)


@dataclass(frozen=True)
class Registered:
    """Image and point features of the same cells: rgb (P, C), xyz (P, C'), which cells hold a point (P,) bool, and their grid."""

    rgb: Tensor
    xyz: Tensor
    held: Tensor
    grid: Grid

    def half(self) -> Registered:
        """Return it in half precision, to be kept while fitting."""
        return replace(self, rgb=self.rgb.half(), xyz=self.xyz.half())

    def rescale(self, scale: Scale) -> Registered:
        """Return it in single precision, shifted and scaled channel by channel."""
        rows = {name: (getattr(self, name).float() - scale[name][0]) * scale[name][1] for name in MODALITIES}
        return replace(self, **rows)


class RegisteredSource:
    """The extractors of both modalities, on one grid.

    Args:
        method: name, for messages.
        config: a `RegisteredConfig`.
    """

    def __init__(self, method: str, config: Any) -> None:
        self.method, self.config = method, config
        self._made: dict[str, Describes[Patches]] = {}

    @property
    def weights(self) -> list[dict[str, Any]]:
        """What a result says of the weights of both."""
        return [row for name in MODALITIES for row in self._extractor(name).weights]

    def _extractor(self, name: str) -> Describes[Patches]:
        """Return the extractor of a modality with its cache, made when it is first needed."""
        c = self.config
        if name not in self._made:
            kept: tuple[object, ...] = (c.image_size, c.fineness, c.backbone, c.layers, c.weights)
            if name == "xyz":
                kept = c.image_size, c.fineness, c.points, self._side, c.centers, c.group_size, c.reference
            made: Describes[Patches] = self._images if name == "rgb" else self._points
            self._made[name] = keep_features(made, Patches, c.feature_cache, "registered", name, kept)
        return self._made[name]

    @cached_property
    def _images(self) -> ImagePatches:
        c = self.config
        return ImagePatches(self._place, c.image_size, c.backbone, c.layers, c.weights, c.device, c.seed)

    @cached_property
    def _points(self) -> PointPatches:
        c = self.config
        return PointPatches(
            PointCells(c.points, c.point_weights, self._side, c.centers, c.group_size, c.reference), c.image_size, c.fineness
        )

    @property
    def _side(self) -> int:
        return int(self.config.image_size if self.config.reference else min(self.config.image_size, math.isqrt(self.config.max_points)))

    def _place(self, layers: list[Tensor], cells: Grid) -> Tensor:
        """Bring the layers of an image to the grid of the point features."""
        return stack_layers(layers, (cells[0] * self.config.fineness, cells[1] * self.config.fineness))

    def find_scale(self, found: Sequence[Registered]) -> Scale:
        """Center the channels and bring each layer to one spread, over cells that hold a point: then a cosine tells patches apart.

        As published, the features are left as they are.
        """
        scale = {}
        for name in MODALITIES:
            rows = [getattr(one, name)[one.held].float() for one in found]
            width = rows[0].shape[1]
            known = tuple((channels, 1.0) for channels in self._images.extractor.widths) if name == "rgb" else self._points.cells.blocks
            scale[name] = fit_scale(rows, known or ((width, 1.0),))
            if self.config.reference:
                scale[name] = torch.zeros(width), torch.ones(width)
        return scale

    def describe(self, sample: Sample) -> Registered:
        """Return the features of a sample.

        Raises:
            DataError: it lacks a modality, or has a cloud without a grid or without a point.
        """
        for name in MODALITIES:
            if name not in sample.modalities:
                raise DataError(f"sample {sample.meta.id!r} has no {name}, and {self.method} compares both; complete it, or use duet")
        rgb, xyz = (self._extractor(name).describe([sample])[0] for name in MODALITIES)
        # The published test takes a feature that happens to sum to 0 for the background.
        held = xyz.features.sum(1) != 0 if self.config.reference else (xyz.features != 0).any(1)
        return Registered(rgb.features, xyz.features, held, xyz.grid)
