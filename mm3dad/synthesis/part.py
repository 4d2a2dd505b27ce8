"""Where the part is: defects belong on it, not on the table it lies on."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.ops.table import fit_table, frame_mask
from mm3dad.synthesis.masks import grow_mask
from mm3dad.types import Sample

CLEAR = 6.0  # heights above the table that count, in units of its own roughness ...
LEAST = 0.001  # ... and in metres
SMALLEST = 0.01  # share of the valid points below which what was found is no part
MOST_BORDER = 0.2  # share of the frame a part may cover; beyond it the frame does not show the table


def find_part(sample: Sample) -> Tensor:
    """Find the pixels of the part: valid points that stand clear of the plane the border of the picture shows.

    A robust plane through the border stands for the table, and its own roughness says how far a point must lie before it. Where the
    border is no plane (the part fills the picture), holds no point (the background was removed), or nothing stands clear of it, all
    valid points are the part; without points all pixels are.

    Args:
        sample: one view.
    Returns:
        (H, W) bool.
    """
    if sample.xyz is None or sample.valid is None:
        return torch.ones(sample.size, dtype=torch.bool)
    table = fit_table(sample.xyz, sample.valid)
    if table is None:
        return sample.valid.clone()
    clear = sample.valid & (table.height(sample.xyz) > max(CLEAR * table.roughness, LEAST))
    part = grow_mask(grow_mask(clear, -1), 1) & clear
    frame = frame_mask(sample.size)
    if float(part.sum()) < SMALLEST * float(sample.valid.sum()) or float((clear & frame).sum()) > MOST_BORDER * float(frame.sum()):
        return sample.valid.clone()
    return part
