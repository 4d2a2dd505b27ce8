"""Boxes of what a detector found, without those that lie on a better one."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.errors import ShapeError


def suppress_boxes(centers: Tensor, size: Tensor, scores: Tensor, overlap: float = 0.01, most: int = 8) -> Tensor:
    """Keep the best boxes of one size, greedily: none that shares more than `overlap` of its union's volume with a better one.

    Source: non-maximum suppression in 3D, Vote3Deep (trained sheet, 7.2).

    Args:
        centers: (M, 3) floating, metres, in the axes of the boxes.
        size: (3,) floating, metres, above 0.
        scores: (M,) floating.
        overlap: largest intersection over union.
        most: boxes kept.
    Returns:
        (B,) int64 rows of centers, best first.
    Raises:
        ShapeError: shapes that do not fit, or a size that is not above 0.
    """
    if centers.ndim != 2 or centers.shape[1] != 3 or scores.shape != centers.shape[:1] or size.shape != (3,) or not bool((size > 0).all()):
        raise ShapeError(
            f"boxes need centers (M, 3), scores (M,) and a size (3,) above 0, got {tuple(centers.shape)}, {tuple(scores.shape)} and {size}"
        )
    kept: list[int] = []
    left = scores.argsort(descending=True, stable=True)
    while len(left) and len(kept) < most:
        best = left[0]
        kept.append(int(best))
        shared = (size - (centers[left] - centers[best]).abs()).clamp_min(0).prod(1)
        union = 2 * size.prod() - shared
        left = left[(shared / union <= overlap) & (left != best)]
    return torch.tensor(kept, dtype=torch.int64)


def box_corners(centers: Tensor, size: Tensor, axes: Tensor) -> Tensor:
    """Return the corners (B, 8, 3) of boxes, in the frame that `axes` (3, 3), rows, are written in.

    Args:
        centers: (B, 3), metres, in the axes of the boxes.
        size: (3,), metres.
        axes: (3, 3), the unit vectors of the boxes' axes.
    """
    signs = torch.cartesian_prod(*(torch.tensor([-0.5, 0.5]) for _ in range(3)))
    return (centers[:, None] + signs * size) @ axes
