"""Defects of depth: a piece of another surface pasted onto a part's own grid (G2SF)."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.synthesis.blend import Placement


def paste_depth(xyz: Tensor, source: Tensor, placement: Placement, offset: float) -> Tensor:
    """Paste the relief of another surface: its z, moved so that the means agree, and by `offset` more; x and y stay the target's own.

    Source: G2SF (ICCV 2025; trained sheet, 2.3), where the offset is +-U(2e-4, 2e-3) metres.

    Args:
        xyz: (3, H, W) float32 metres, valid at all target pixels.
        source: (3, H, W) float32 metres, valid at all source pixels.
        placement: see `place_components`.
        offset: metres away from the sensor.
    Returns:
        (3, H, W); only z at the target pixels differs.
    """
    pasted = xyz.flatten(1).clone()
    if len(placement.target):
        relief = source.flatten(1)[2, placement.source]
        pasted[2, placement.target] = relief - relief.mean() + pasted[2, placement.target].mean() + offset
    return pasted.view_as(xyz)


def keep_valid(placement: Placement, valid: Tensor, source_valid: Tensor) -> Placement:
    """Keep the pasted pixels that hold a point on both sides, masks (H, W) bool."""
    kept = valid.flatten()[placement.target] & source_valid.flatten()[placement.source]
    return Placement(placement.target[kept], placement.source[kept])


def move_along_rays(xyz: Tensor, depth: Tensor) -> Tensor:
    """Give each point of xyz (3, H, W) another depth (H, W) on its own viewing ray, so that it stays on its pixel; z = 0 stays."""
    z = xyz[2]
    return xyz * torch.where(z != 0, depth / torch.where(z != 0, z, 1.0), 1.0)
