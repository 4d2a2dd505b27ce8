"""What resad sees of a sample: the layers of a backbone and the features of the cloud, level by level on one square grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mm3dad.features.cache import Describes, keep_features
from mm3dad.features.pixelmap import Cells, CellsOnGrid, PointCells
from mm3dad.features.tokens import TokenExtractor, Tokens
from mm3dad.types import Sample

Grid = tuple[int, int]
Levels = dict[str, list[Tensor]]  # modality -> levels (P, C), all of one square grid


class LevelSource:
    """The levels of both modalities on one square grid: the layers of the backbone, and the features of the cloud as one more.

    Args:
        config: resad's settings.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._images: Describes[Tokens] | None = None
        self._clouds: dict[Grid, Describes[Cells]] = {}

    @property
    def images(self) -> Describes[Tokens]:
        """The encoder of images, made when it is first needed."""
        c = self._config
        if self._images is None:
            made = TokenExtractor(c.backbone, c.layers, c.weights, c.image_size, c.device, c.seed)
            self._images = keep_features(made, Tokens, c.feature_cache, "tokens", c.backbone, c.layers, c.image_size, 1.0)
        return self._images

    def _points(self, grid: Grid) -> Describes[Cells]:
        c = self._config
        if grid not in self._clouds:
            side = min(c.image_size, math.isqrt(c.max_points))
            made = CellsOnGrid(PointCells("fpfh", "default", side), grid)
            self._clouds[grid] = keep_features(made, Cells, c.feature_cache, "cells", "fpfh", side, grid)
        return self._clouds[grid]

    def describe(self, sample: Sample, wanted: Sequence[str]) -> tuple[Levels, Grid]:
        """Return the levels of those wanted modalities that the sample has.

        Raises:
            DataError: a cloud without a grid or without a point.
        """
        levels: Levels = {}
        grid = (max(1, self._config.image_size // 8),) * 2
        if "rgb" in wanted and sample.rgb is not None:
            tokens = self.images.describe([sample])[0]
            levels["rgb"], grid = tokens.layers, tokens.grid
        if "xyz" in wanted and sample.xyz is not None:
            levels["xyz"] = [self._points(grid).describe([sample])[0].features]
        return levels, grid
