"""The familiar functions: batched clouds (B, N, 3), features (B, C, N), int32 indices.

Differences from the well-known library: everything runs on the CPU too; no point is skipped for lying near the origin; the first centre is
row 0; equal distances go to the lowest index; on the CPU coordinates are compared in float64.
Source of the operations: PointNet++ (Qi et al., NeurIPS 2017), sections 3.2 to 3.4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pointnet2_ops import _reference
from pointnet2_ops._library import kernels_for

__all__ = [
    "GroupAll",
    "QueryAndGroup",
    "ball_query",
    "furthest_point_sample",
    "gather_operation",
    "grouping_operation",
    "three_interpolate",
    "three_nn",
]


def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """Pick spread-out points, row 0 first, then always the farthest from those picked.

    Args:
        xyz: (B, N, 3) floating.
        npoint: picks per cloud, 1 to N.
    Returns:
        (B, npoint) int32.
    Raises:
        ValueError: another shape, or `npoint` out of range.
    """
    _check_cloud("xyz", xyz)
    if not 1 <= npoint <= xyz.shape[1]:
        raise ValueError(f"npoint must be 1 to {xyz.shape[1]}, the points of a cloud, got {npoint}")
    kernels = kernels_for(xyz)
    if kernels is None:
        return _reference.sample_farthest(xyz.detach(), npoint).int()
    return kernels.farthest_point_sample(_coordinates(xyz), npoint, 0, torch.get_num_threads()).int()


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Find the three nearest known points of each unknown one.

    Args:
        unknown: (B, N, 3) floating.
        known: (B, M, 3) floating.
    Returns:
        Distances (B, N, 3), Euclidean, in the dtype of `unknown`; rows (B, N, 3) int32. With fewer than three known points the rest is
        infinitely far and row 0. No gradient, as in the well-known library.
    Raises:
        ValueError: another shape, or no known point.
    """
    _check_cloud("unknown", unknown)
    _check_cloud("known", known, len(unknown))
    if not known.shape[1]:
        raise ValueError("known must have at least one point, got none")
    kernels = kernels_for(unknown)
    if kernels is None:
        squared, index = _reference.find_three(unknown.detach(), known.detach())
    else:
        squared, index = kernels.three_nn(_coordinates(unknown), _coordinates(known), torch.get_num_threads())
    return squared.sqrt().to(unknown.dtype), index.int()


def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    """List the first points, in the order of the cloud, nearer to each centre than a radius.

    Args:
        radius: strict limit, in the unit of the cloud.
        nsample: length of a list; a short one repeats its first entry, an empty one is all 0.
        xyz: (B, N, 3) floating, the cloud.
        new_xyz: (B, M, 3) floating, the centres.
    Returns:
        (B, M, nsample) int32.
    Raises:
        ValueError: another shape, an empty cloud, or `nsample` below 1.
    """
    _check_cloud("xyz", xyz)
    _check_cloud("new_xyz", new_xyz, len(xyz))
    if nsample < 1 or not xyz.shape[1]:
        raise ValueError(f"expected nsample of at least 1 and a cloud with points, got nsample {nsample} and {xyz.shape[1]} points")
    kernels = kernels_for(xyz)
    if kernels is None:
        return _reference.query_balls(new_xyz.detach(), xyz.detach(), radius, nsample).int()
    return kernels.ball_query(_coordinates(new_xyz), _coordinates(xyz), radius, nsample, torch.get_num_threads()).int()


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Pick columns of features, with gradient.

    Args:
        features: (B, C, N) floating.
        idx: (B, M) integer columns.
    Returns:
        (B, C, M).
    Raises:
        ValueError: another shape or dtype.
    """
    _check_features(features, idx, 2)
    if not _is_native(features):
        return _reference.gather(features, idx)
    return _Gather.apply(features.contiguous(), idx.int().contiguous())


def grouping_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Pick groups of columns of features, with gradient.

    Args:
        features: (B, C, N) floating.
        idx: (B, M, K) integer columns.
    Returns:
        (B, C, M, K).
    Raises:
        ValueError: another shape or dtype.
    """
    _check_features(features, idx, 3)
    return gather_operation(features, idx.flatten(1)).unflatten(2, idx.shape[1:])


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Sum three columns of features with their weights; gradients of features and weights.

    Args:
        features: (B, C, M) floating.
        idx: (B, N, 3) integer columns.
        weight: (B, N, 3), usually summing to 1 over the last dimension.
    Returns:
        (B, C, N).
    Raises:
        ValueError: another shape or dtype.
    """
    _check_features(features, idx, 3)
    if idx.shape[2] != 3 or weight.shape != idx.shape:
        raise ValueError(f"idx and weight must both be (B, N, 3), got {tuple(idx.shape)} and {tuple(weight.shape)}")
    if not _is_native(features) or weight.dtype != features.dtype:
        return _reference.interpolate(features, idx, weight)
    return _Interpolate.apply(features.contiguous(), idx.int().contiguous(), weight.contiguous())


class QueryAndGroup(nn.Module):
    """Group the points of a ball around each centre, relative to it, and their features."""

    def __init__(self, radius: float, nsample: int, use_xyz: bool = True) -> None:
        """Keep radius, points per group, and whether the relative coordinates lead the features."""
        super().__init__()
        self.radius, self.nsample, self.use_xyz = radius, nsample, use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor, features: Tensor | None = None) -> Tensor:
        """Group.

        Args:
            xyz: (B, N, 3) the cloud.
            new_xyz: (B, M, 3) the centres.
            features: (B, C, N) or None.
        Returns:
            (B, 3 + C, M, nsample); without the leading 3 if not `use_xyz`.
        Raises:
            ValueError: neither features nor coordinates are asked for.
        """
        idx = ball_query(self.radius, self.nsample, xyz, new_xyz)
        relative = grouping_operation(xyz.transpose(1, 2), idx) - new_xyz.transpose(1, 2)[..., None]
        return _join(relative, None if features is None else grouping_operation(features, idx), self.use_xyz)


class GroupAll(nn.Module):
    """Take the whole cloud as one group."""

    def __init__(self, use_xyz: bool = True) -> None:
        """Keep whether the coordinates lead the features."""
        super().__init__()
        self.use_xyz = use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor | None, features: Tensor | None = None) -> Tensor:
        """Group (B, N, 3) points and (B, C, N) features to (B, 3 + C, 1, N); `new_xyz` is not used."""
        return _join(xyz.transpose(1, 2)[:, :, None], None if features is None else features[:, :, None], self.use_xyz)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.total = features.shape[2]
        return torch.ops.mm3dad.gather(features, index, torch.get_num_threads())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return torch.ops.mm3dad.gather_backward(grads[0].contiguous(), index, ctx.total, torch.get_num_threads()), None


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(features, index, weight)
        return torch.ops.mm3dad.interpolate(features, index, weight, torch.get_num_threads())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        features, index, weight = ctx.saved_tensors
        grad, threads = grads[0].contiguous(), torch.get_num_threads()
        back = torch.ops.mm3dad.interpolate_backward(grad, index, weight, features.shape[2], threads) if ctx.needs_input_grad[0] else None
        shares = None
        if ctx.needs_input_grad[2]:
            picked = torch.ops.mm3dad.gather(features, index.flatten(1), threads).unflatten(2, index.shape[1:])
            shares = (picked * grad[..., None]).sum(1)
        return back, None, shares


def _join(relative: Tensor, grouped: Tensor | None, use_xyz: bool) -> Tensor:
    if grouped is None:
        if not use_xyz:
            raise ValueError("expected features or use_xyz=True, got neither: the groups would be empty")
        return relative
    return torch.cat([relative, grouped], 1) if use_xyz else grouped


def _coordinates(xyz: Tensor) -> Tensor:
    # The CPU compares in float64, which costs nothing there; a GPU keeps float32, as the well-known library does.
    wide = xyz.detach() if xyz.is_cuda and xyz.dtype == torch.float64 else xyz.detach().float() if xyz.is_cuda else xyz.detach().double()
    return wide.contiguous()


def _is_native(features: Tensor) -> bool:
    return features.dtype in (torch.float32, torch.float64) and kernels_for(features) is not None


def _check_cloud(name: str, cloud: Tensor, batch: int | None = None) -> None:
    if cloud.ndim != 3 or cloud.shape[2] != 3 or not cloud.is_floating_point() or (batch is not None and len(cloud) != batch):
        wanted = f"({'B' if batch is None else batch}, N, 3)"
        raise ValueError(f"{name} must be floating {wanted}, got {cloud.dtype} {tuple(cloud.shape)}")


def _check_features(features: Tensor, idx: Tensor, dims: int) -> None:
    if features.ndim != 3 or not features.is_floating_point():
        raise ValueError(f"features must be floating (B, C, N), got {features.dtype} {tuple(features.shape)}")
    if idx.ndim != dims or idx.is_floating_point() or len(idx) != len(features):
        raise ValueError(f"idx must hold integers in {dims} dimensions, one batch of {len(features)}, got {idx.dtype} {tuple(idx.shape)}")
