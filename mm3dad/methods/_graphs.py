"""Hypergraphs of samples: image and point features on one grid, and the semantic groups that both modalities share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mm3dad.errors import DataError
from mm3dad.features.cache import Describes, keep_features
from mm3dad.features.pixelmap import Cells, CellsOnGrid, PointCells
from mm3dad.features.tokens import TokenExtractor, Tokens, join_layers
from mm3dad.memory.hypergraph import Hypergraph, build_hypergraph
from mm3dad.types import Sample

Scale = tuple[Tensor, Tensor]  # shift and factor of each channel


@dataclass(frozen=True)
class Image:
    """One image: its hypergraph, the patch features (N, C) of each modality, and its grid."""

    graph: Hypergraph
    features: dict[str, Tensor]
    grid: tuple[int, int]

    def rescale(self, scale: Scale | None) -> Image:
        """Return it with point features shifted and scaled channel by channel; None leaves them as they are."""
        if scale is None or "xyz" not in self.features:
            return self
        return replace(self, features=self.features | {"xyz": (self.features["xyz"] - scale[0]) * scale[1]})


class GraphSource:
    """The extractors of both modalities, and the hypergraph of the image's foreground.

    Args:
        config: cif's settings.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self._cells: Describes[Cells] | None = None

    @cached_property
    def images(self) -> Describes[Tokens]:
        """The image encoder, made when it is first needed."""
        c = self.config
        made = TokenExtractor(c.backbone, c.layers, c.weights, c.image_size, c.device, c.seed)
        return keep_features(made, Tokens, c.feature_cache, "tokens", c.backbone, c.layers, c.image_size, 1.0)

    @cached_property
    def points(self) -> PointCells:
        """The point features, made when they are first needed."""
        c = self.config
        return PointCells(c.points, c.point_weights, c.point_side, c.centers, c.group_size, c.reference)

    def _cells_on(self, grid: tuple[int, int]) -> Describes[Cells]:
        """Return the point features on the grid of the image patches, which all images share."""
        c = self.config
        if self._cells is None:
            cloud = c.points, c.point_side, c.centers, c.group_size, c.reference, grid
            self._cells = keep_features(CellsOnGrid(self.points, grid), Cells, c.feature_cache, "cells", *cloud)
        return self._cells

    def describe(self, sample: Sample, names: Sequence[str]) -> Image:
        """Extract the features of the named modalities on one grid, and the hypergraph of the image's foreground.

        Raises:
            DataError: the sample lacks the image or a named modality, or has a cloud without a grid or without a point.
        """
        c = self.config
        for name in ("rgb", *names):
            if name not in sample.modalities:
                cure = "complete it, or fit with modalities=rgb" if name == "xyz" else "the hypergraph is built on it, use btf or duet"
                raise DataError(f"sample {sample.meta.id!r} has no {name}, which this cif model needs; {cure}")
        tokens = self.images.describe([sample])[0]
        features = {"rgb": tokens.layers[0] if len(tokens.layers) == 1 else join_layers(tokens)}
        foreground = torch.ones(len(features["rgb"]), dtype=torch.bool)
        if "xyz" in names:
            cells = self._cells_on(tokens.grid).describe([sample])[0]
            features["xyz"], foreground = cells.features, cells.covered > 0.5
            # A sparse cloud may cover no cell by half; what it covers most is then the part.
            foreground = foreground if bool(foreground.any()) else cells.covered >= 0.5 * cells.covered.max()
        graph = build_hypergraph(features["rgb"], foreground, c.hyperedges, c.incidence, c.seed, first=c.reference)
        return Image(graph, features, tokens.grid)
