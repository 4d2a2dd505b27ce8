"""Point features on the image's patch grid, so that both modalities of a part meet cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm3dad.errors import DataError
from mm3dad.features.align import pool_map, scatter_points
from mm3dad.features.branches import RELIEF_WEIGHT, load_point_net
from mm3dad.features.points import encode_groups, group_points, measure_relief, spread_to_points, take_fpfh_roots
from mm3dad.features.weights import TABLE
from mm3dad.ops import fpfh
from mm3dad.types import Sample

FPFH_BINS = 33
FPFH_BLOCKS = ((FPFH_BINS, 1.0), *((1, RELIEF_WEIGHT),) * 3)  # of cells with relief, for `fit_scale`


@dataclass(frozen=True)
class Cells:
    """Point features of one sample on a grid of patches.

    Args:
        features: (h * w, C) float32, zeros where a cell has no point.
        covered: (h * w,) float32 in [0, 1], share of a cell's pixels that hold a point.
    """

    features: Tensor
    covered: Tensor


def resample_cloud(xyz: Tensor, valid: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Bring an organised cloud to a square grid by nearest pixels, which invents no point at a hole.

    Args:
        xyz: (3, H, W) float32, metres.
        valid: (H, W) bool.
        side: of the square.
    Returns:
        the valid points (N, 3) and their flat place (N,) int64 on the square.
    """
    row, column = (((2 * torch.arange(side, device=xyz.device) + 1) * n) // (2 * side) for n in valid.shape)
    kept = valid[row[:, None], column[None]].flatten()
    points = xyz[:, row[:, None], column[None]].flatten(1).T[kept]
    return points.contiguous(), kept.nonzero()[:, 0]


def pool_points(values: Tensor, pixel: Tensor, side: int, grid: tuple[int, int], with_holes: bool = False) -> Cells:
    """Average point features over 3 x 3 pixels and then over the cells of a grid (BTF, M3DM, CIF).

    Args:
        values: (N, C) floating.
        pixel: (N,) int64, place on a square of `side` pixels, at least 3.
        grid: (h, w).
        with_holes: pixels without a point count as zeros, as published; else only points count.
    """
    both = torch.cat([values, values.new_ones(len(values), 1)], dim=1)
    pooled = pool_map(scatter_points(both, pixel, side), grid).flatten(1).T
    features, covered = pooled[:, :-1], pooled[:, -1]
    if not with_holes:
        features = torch.where(covered[:, None] > 0, features / covered.clamp_min(1e-6)[:, None], 0.0)
    return Cells(features.contiguous(), covered.contiguous())


class PointCells:
    """Point features of a sample on any patch grid.

    FPFH cells carry the relief of the part in three further channels (`measure_relief` of the cells' mean points), because FPFH does
    not see the flat floor of a wide dent; as published (`with_holes`) they do not.

    Args:
        kind: "fpfh" (square roots of the histograms, no weights needed) or "point_mae" (tokens of three layers, carried to the points
            by their nearest three centres).
        weights: path of a Point-MAE checkpoint, or "default" for the local cache.
        side: of the square the cloud is brought to by nearest pixels; 224 is published.
        centers, group_size: of the Point-MAE groups; 1024 and 128 are published.
        with_holes: as `pool_points`.
        raw: leave FPFH as it is, 0 to 200, instead of taking roots (BTF).
        relief: add the relief channels.
    """

    def __init__(
        self,
        kind: str,
        weights: str,
        side: int,
        centers: int = 1024,
        group_size: int = 128,
        with_holes: bool = False,
        raw: bool = False,
        relief: bool = True,
    ) -> None:
        self.side, self.centers, self.group_size, self.with_holes = side, centers, group_size, with_holes
        self.raw, self.relief = raw, relief
        self._net: Any = None
        self.weights: list[dict[str, Any]] = []
        if kind == "point_mae":
            self._net, self.weights = load_point_net(weights)

    @property
    def blocks(self) -> tuple[tuple[int, float], ...]:
        """Width and weight of consecutive channels for `fit_scale`; empty where the features are compared as they are."""
        return () if self.with_holes or not self.relief or self._net is not None else FPFH_BLOCKS

    def describe(self, samples: Sequence[Sample], grids: Sequence[tuple[int, int]]) -> list[Cells]:
        """Return the cells of each sample on its grid.

        Raises:
            DataError: a cloud without a grid, without a point, or with fewer points than one group.
        """
        return [self._describe_one(sample, grid) for sample, grid in zip(samples, grids, strict=True)]

    def _describe_one(self, sample: Sample, grid: tuple[int, int]) -> Cells:
        assert sample.xyz is not None and sample.valid is not None
        if not sample.meta.organised:
            raise DataError(f"sample {sample.meta.id!r} is a cloud without a grid; this method needs an organised one, use duet or muscv2")
        side = max(3, min(self.side, *sample.size))  # a finer square would repeat points
        points, pixel = resample_cloud(sample.xyz, sample.valid, side)
        if not len(points):
            raise DataError(f"sample {sample.meta.id!r} has no valid point; check the sensor, the unit and the mask of missing points")
        if self._net is None:
            values = fpfh(points) if self.raw else take_fpfh_roots(points)
        else:
            try:
                groups = group_points(points, pixel, self.centers, self.group_size, grow=False)
            except DataError as error:
                raise DataError(f"sample {sample.meta.id!r}: {error}") from None
            tokens = encode_groups(groups, self._net, TABLE["point_mae"].layers)
            values = spread_to_points(tokens, points[groups.center], points)
        if not self.blocks:
            return pool_points(values.float(), pixel, side, grid, self.with_holes)
        cells = pool_points(torch.cat([values.float(), points], dim=1), pixel, side, grid)
        seen = cells.covered > 0
        relief = cells.features.new_zeros(len(seen), 3)
        relief[seen] = measure_relief(cells.features[seen, FPFH_BINS:])
        return Cells(torch.cat([cells.features[:, :FPFH_BINS], relief], dim=1), cells.covered)


def fit_scale(parts: Sequence[Tensor], blocks: Sequence[tuple[int, float]]) -> tuple[Tensor, Tensor]:
    """Find the shift and the factor that centre features and give each block of channels its spread.

    Centred, because cosines between features that all point one way say little, and a few of them then attract all others.

    Args:
        parts: (N, C) features of normal cells, one tensor per sample.
        blocks: (width, weight) of consecutive channels, brought together to a spread of `weight`.
    Returns:
        shift (C,) and factor (C,), so that (features - shift) * factor.
    """
    rows = torch.cat(list(parts)).double()
    shift, spread = rows.mean(0), rows.std(0, correction=0)
    factor = [weight / part.norm().clamp_min(1e-6) for part, (_, weight) in zip(spread.split([w for w, _ in blocks]), blocks, strict=True)]
    return shift.float(), torch.cat([value.expand(width) for value, (width, _) in zip(factor, blocks, strict=True)]).float()


class CellsOnGrid:
    """`PointCells` on one grid for all samples."""

    def __init__(self, cells: PointCells, grid: tuple[int, int]) -> None:
        self._cells, self._grid = cells, grid

    @property
    def weights(self) -> list[dict[str, Any]]:
        """As those of the cells."""
        return self._cells.weights

    def describe(self, samples: Sequence[Sample]) -> list[Cells]:
        """Return the cells of each sample."""
        return self._cells.describe(samples, [self._grid] * len(samples))
