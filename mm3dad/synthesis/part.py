"""Where the part is: defects belong on it, not on the table it lies on."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.synthesis.masks import grow_mask
from mm3dad.types import Sample

BORDER = 0.05  # width of the frame that shows the table, as a share of the picture
CLEAR = 6.0  # heights above the table that count, in units of its own roughness ...
LEAST = 0.001  # ... and in metres
SMALLEST = 0.01  # share of the valid points below which what was found is no part


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
    height, width = sample.size
    frame = torch.ones(sample.size, dtype=torch.bool)
    rows, columns = (max(1, round(BORDER * n)) for n in (height, width))
    frame[rows : height - rows, columns : width - columns] = False
    border = sample.xyz[:, frame & sample.valid].T.double()
    if height < 8 or width < 8 or len(border) < 0.5 * float(frame.sum()):
        return sample.valid.clone()
    normal, offset, unit = _fit_plane(border)
    above = torch.tensordot(normal, sample.xyz.double(), dims=1) - offset
    clear = sample.valid & (above > max(CLEAR * unit, LEAST))
    part = grow_mask(grow_mask(clear, -1), 1) & clear
    if float(part.sum()) < SMALLEST * float(sample.valid.sum()) or float((clear & frame).sum()) > 0.2 * float(frame.sum()):
        return sample.valid.clone()
    return part


def _fit_plane(points: Tensor, rounds: int = 15) -> tuple[Tensor, float, float]:
    """Return normal (3,) towards the sensor, offset and roughness (median distance, over 0.67) of the plane most points lie on."""
    weight = torch.ones(len(points), 1, dtype=points.dtype)
    for _ in range(rounds):
        middle = (weight * points).sum(0) / weight.sum()
        centred = points - middle
        normal = torch.linalg.eigh((weight * centred).T @ centred).eigenvectors[:, 0]
        distance = (centred @ normal).abs()
        unit = distance.median().clamp_min(1e-9)
        weight = 1 / (1 + (distance / unit) ** 2)[:, None]
    normal = -normal if float(normal @ middle) > 0 else normal
    return normal, float(normal @ middle), float(unit) / 0.6745
