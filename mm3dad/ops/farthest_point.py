"""Farthest-point sampling of a cloud."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.ops._check import check_integer, check_rows
from mm3dad.ops._native import native_kernels
from mm3dad.ops.k_center import pick_centers


def farthest_point_sample(points: Tensor, count: int, start: int = 0) -> Tensor:
    """Pick well-spread points: each the farthest from all picked before it.

    Equal distances go to the lowest index and duplicates are picked last, so the result depends on nothing but the input. Unlike
    pointnet2_ops no point is skipped for lying near the origin.

    Args:
        points: (N, 3) floating, metres; finite.
        count: number of picks, 1 to N.
        start: index of the first pick.
    Returns:
        (count,) int64 indices into `points`, in the order of picking, on the same device.
    Raises:
        ShapeError: `points` is not a finite floating (N, 3) tensor.
        ConfigError: `count` or `start` is out of range.

    >>> import torch
    >>> line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [4, 0, 0]])
    >>> farthest_point_sample(line, 2).tolist()
    [0, 2]
    """
    check_rows("points", points, width=3)
    count = check_integer("count", count, 1, len(points), "points has only that many rows")
    start = check_integer("start", start, 0, len(points) - 1)
    kernels = native_kernels(points.device.type, "farthest_point_sample")
    if kernels is None:
        return farthest_point_sample_reference(points, count, start)
    place = points.detach().double().contiguous()
    return kernels.farthest_point_sample(place[None], count, start, torch.get_num_threads())[0]


def farthest_point_sample_reference(points: Tensor, count: int, start: int = 0) -> Tensor:
    """Do the same in torch: greedy k-centre of three columns."""
    return pick_centers(points, count, start, name="points")
