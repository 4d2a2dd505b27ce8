"""Clouds of normal parts with stretched defects, as cells that are a defect, none, or neither."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mm3dad.features.voxels import Voxels, measure_voxels
from mm3dad.synthesis.synthesizers import Stretch, StretchConfig

CORE = 0.4  # share of a defect's largest displacement beyond which a cell is the defect
DEFECTS = 40  # drawn to choose the size of the boxes
PERCENTILE = 0.95  # of their extents, as Vote3Deep takes of its ground truth
STRETCHES = tuple(Stretch(StretchConfig(profile=profile)) for profile in ("cone", "bulge"))


def draw_defects(cloud: Tensor, size: float, generator: torch.Generator) -> tuple[Voxels, Tensor]:
    """Turn a cloud about the table's normal, shift it against the grid, and give it a defect of each profile.

    Args:
        cloud: (N, 3) float32, N >= 2, metres, in axes along the table.
        size: side of a cell, metres.
        generator: of the draws.
    Returns:
        the cells, and what each is (M,) int64: 1 a defect, 0 none, -1 the foot of one.
    """
    angle = 2 * math.pi * float(torch.rand((), generator=generator))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    points = cloud @ turn.T + size * torch.rand(3, generator=generator)
    share = torch.zeros(len(points))
    for stretch in STRETCHES:
        altered, _ = stretch.alter(points, generator)
        moved = (altered - points).norm(dim=1)
        share = torch.maximum(share, moved / moved.max().clamp_min(1e-12))
        points = altered
    voxels = measure_voxels(points, size)
    count = torch.bincount(voxels.owner, minlength=len(voxels.cells))
    of_cell = torch.zeros(len(count)).index_add_(0, voxels.owner, share) / count
    return voxels, torch.where(of_cell > CORE, 1, torch.where(of_cell > 0, -1, 0))


def measure_box(clouds: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Return the sides (3,), metres, that hold most of the defects that are drawn."""
    sides = torch.zeros(DEFECTS, 3)
    for number in range(DEFECTS):
        altered, mask = STRETCHES[number % len(STRETCHES)].alter(clouds[number % len(clouds)], generator)
        if bool(mask.any()):
            sides[number] = altered[mask].amax(0) - altered[mask].amin(0)
    return sides.quantile(PERCENTILE, dim=0)
