"""The table a part lies on: the plane that the border of an organised cloud shows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mm3dad.errors import ShapeError

BORDER = 0.05  # width of the frame that shows the table, as a share of the picture
ROUNDS = 15


class Table(NamedTuple):
    """A plane: unit normal (3,) float64 towards the sensor, offset along it in metres, and roughness (a robust deviation) in metres."""

    normal: Tensor
    offset: float
    roughness: float

    def height(self, xyz: Tensor) -> Tensor:
        """Return how far points xyz (3, H, W) stand above the plane, towards the sensor: (H, W) float64, metres."""
        return torch.tensordot(self.normal, xyz.double(), dims=1) - self.offset


def frame_mask(size: tuple[int, int]) -> Tensor:
    """Return the frame of a picture (H, W), bool: BORDER of each side, at least one pixel."""
    frame = torch.ones(size, dtype=torch.bool)
    rows, columns = (max(1, round(BORDER * n)) for n in size)
    frame[rows : size[0] - rows, columns : size[1] - columns] = False
    return frame


def fit_table(xyz: Tensor, valid: Tensor) -> Table | None:
    """Fit a plane to the frame of an organised cloud, by least squares reweighted towards what most points agree on.

    Args:
        xyz: (3, H, W) floating, metres, the sensor at the origin.
        valid: (H, W) bool.
    Returns:
        the plane; None where there is no frame to speak of: less than 8 pixels a side, or half of it not measured (the background was
        removed).
    Raises:
        ShapeError: xyz is not (3, H, W) with valid (H, W).
    """
    if xyz.ndim != 3 or len(xyz) != 3 or valid.shape != xyz.shape[1:] or valid.dtype != torch.bool:
        raise ShapeError(f"xyz must be (3, H, W) with valid (H, W) bool, got {tuple(xyz.shape)} and {tuple(valid.shape)} {valid.dtype}")
    frame = frame_mask((int(valid.shape[0]), int(valid.shape[1])))
    points = xyz[:, frame & valid].T.double()
    if min(valid.shape) < 8 or len(points) < 0.5 * float(frame.sum()):
        return None
    return fit_plane(points)


def fit_plane(points: Tensor) -> Table:
    """Fit the plane most of the points (N, 3) float64 lie near, N >= 1, the sensor at the origin."""
    weight = torch.ones(len(points), 1, dtype=points.dtype)
    for _ in range(ROUNDS):
        middle = (weight * points).sum(0) / weight.sum()
        centred = points - middle
        normal = torch.linalg.eigh((weight * centred).T @ centred).eigenvectors[:, 0]
        distance = (centred @ normal).abs()
        unit = distance.median().clamp_min(1e-9)
        weight = 1 / (1 + (distance / unit) ** 2)[:, None]
    normal = -normal if float(normal @ middle) > 0 else normal
    return Table(normal, float(normal @ middle), float(unit) / 0.6745)
