"""Iterative point grouping: neighbourhoods that follow the surface instead of filling a ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mm3dad.errors import ShapeError
from mm3dad.ops._blocks import map_blocks
from mm3dad.ops._check import check_integer, check_rows, check_same_device
from mm3dad.ops._native import native_kernels
from mm3dad.ops.neighbors import nearest_neighbors

# Curved centres grown together: their pair distances (80 x 256 float64 each by default) stay in cache.
CENTER_BLOCK = 16


@dataclass(frozen=True)
class Groups:
    """Groups of points: `index` (G, size) int64 into the cloud, `curvature` (G,) float64 in [0, 1/3], 0 on a plane."""

    index: Tensor
    curvature: Tensor


def iterative_group(
    points: Tensor, center_index: Tensor, size: int = 128, step: int = 80, pool: int = 256, curvature_threshold: float = 0.01
) -> Groups:
    """Group the points around each centre, growing along the surface where it is curved.

    A ball around a rim or a hole jumps across the gap to another surface. So a centre whose curvature reaches the threshold starts with
    its `step` nearest points and then repeatedly takes the `min(step, missing)` smallest links from the group to the rest of its
    `pool` nearest points. As published, links are counted, not points: a point with several short links is taken several times, which
    changes no maximum over the group. Of equal links any may come first. Flat centres get their `size` nearest points.
    Source: MuSc-V2 (arXiv 2511.10047), iterative point grouping.

    Args:
        points: (N, 3) floating, metres.
        center_index: (G,) integer indices into `points`.
        size: points per group, 4 to N.
        step: points in the first group of a curved centre and most links added at once, 1 to `size`.
        pool: candidates per centre, at least `size`; clamped to N.
        curvature_threshold: smallest curvature that counts as curved.
    Returns:
        `Groups` with the nearest or first-taken points first.
    Raises:
        ShapeError: `points` or `center_index` is malformed, or an index is out of range.
        ConfigError: `size`, `step` or `pool` is out of range, e.g. the cloud has fewer than `size` points.
    """
    check_rows("points", points, width=3)
    if center_index.ndim != 1 or center_index.is_floating_point() or center_index.dtype == torch.bool:
        raise ShapeError(f"center_index must be (G,) integers, got {tuple(center_index.shape)} {center_index.dtype}")
    check_same_device(points=points, center_index=center_index)
    if len(center_index) and (int(center_index.min()) < 0 or int(center_index.max()) >= len(points)):
        raise ShapeError(f"center_index must lie in 0 to {len(points) - 1}, got {int(center_index.min())} to {int(center_index.max())}")
    size = check_integer("size", size, 4, len(points), "the cloud has too few points; lower size")
    step = check_integer("step", step, 1, size)
    pool = min(check_integer("pool", pool, size), len(points))
    points = points.detach().double().contiguous()
    _, near = nearest_neighbors(points[center_index], points, pool)
    kernels = native_kernels(points.device.type, "iterative_group")
    if kernels is None:
        return iterative_group_reference(points, near, size, step, curvature_threshold)
    return Groups(*kernels.iterative_group(points, near, size, step, curvature_threshold, torch.get_num_threads()))


def iterative_group_reference(points: Tensor, near: Tensor, size: int, step: int, curvature_threshold: float) -> Groups:
    """Do the same in torch, from float64 points and the (G, pool) nearest of each centre."""
    curvature = map_blocks(lambda neighbors: _curvature(points, neighbors), 4 * CENTER_BLOCK, near[:, 1:size])
    index = near[:, :size].clone()
    curved = (curvature >= curvature_threshold).nonzero()[:, 0]
    if len(curved):
        index[curved] = map_blocks(lambda candidates: _grow(points, candidates, size, step), CENTER_BLOCK, near[curved])
    return Groups(index, curvature)


def _curvature(points: Tensor, neighbors: Tensor) -> Tensor:
    offsets = points[neighbors]
    offsets = offsets - offsets.mean(dim=1, keepdim=True)
    spread = torch.linalg.eigvalsh(offsets.transpose(1, 2) @ offsets).clamp_min(0)
    total = spread.sum(dim=1)
    return torch.where(total > 0, spread[:, 0] / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)


def _grow(points: Tensor, candidates: Tensor, size: int, step: int) -> Tensor:
    # All below are positions inside the pool, which is sorted by distance: the first group is simply the first `step`.
    place = points[candidates]
    member = torch.arange(step, device=points.device).expand(len(candidates), step)
    while member.shape[1] < size:
        missing = min(step, size - member.shape[1])
        ends = place.gather(1, member.unsqueeze(-1).expand(-1, -1, 3))
        link = torch.cdist(ends, place, compute_mode="donot_use_mm_for_euclid_dist")
        link.scatter_(2, member.unsqueeze(1).expand(-1, member.shape[1], -1), torch.inf)
        shortest = link.flatten(1).topk(missing, dim=1, largest=False).indices
        member = torch.cat([member, shortest % place.shape[1]], dim=1)
    return candidates.gather(1, member)
