"""Spread features of centres over all points of a cloud."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mm3dad.errors import ShapeError
from mm3dad.ops._check import check_rows, check_same_device
from mm3dad.ops._native import native_kernels
from mm3dad.ops.neighbors import nearest_neighbors


def three_interpolate(points: Tensor, centers: Tensor, features: Tensor) -> Tensor:
    """Give each point the mean of its three nearest centres' features, weighted by 1 / (squared distance + 1e-8).

    Distances are taken in float64: the float32 product form of the published code is off by 2e-8 at metric coordinates, more than
    the 1e-8 that guards the division. With fewer than three centres all of them count.
    Source: PointNet++ (Qi et al., NeurIPS 2017), section 3.4; as used by M3DM.

    Args:
        points: (N, 3) floating, metres.
        centers: (G, 3) floating, metres.
        features: (G, C) floating, one row per centre.
    Returns:
        (N, C), dtype of `features`.
    Raises:
        ShapeError: a shape, dtype or device does not fit, or a value is not finite.
    """
    check_rows("points", points, width=3, least=0)
    check_rows("centers", centers, width=3)
    check_rows("features", features)
    if len(features) != len(centers):
        raise ShapeError(f"features must have one row per centre, got {len(features)} rows for {len(centers)} centers")
    check_same_device(points=points, centers=centers, features=features)
    kernels = native_kernels(points.device.type, "three_nn") if features.dtype in (torch.float32, torch.float64) else None
    if kernels is None:
        return three_interpolate_reference(points, centers, features)
    place, middle = (rows.detach().double().contiguous()[None] for rows in (points, centers))
    squared, indices = kernels.three_nn(place, middle, torch.get_num_threads())
    near = min(3, len(centers))
    weights = _weigh(squared[0, :, :near]).to(features.dtype)
    return _MixRows.apply(features.contiguous(), indices[0, :, :near].contiguous(), weights.contiguous())


def three_interpolate_reference(points: Tensor, centers: Tensor, features: Tensor) -> Tensor:
    """Do the same in torch."""
    distances, indices = nearest_neighbors(points.double(), centers.double(), min(3, len(centers)))
    weights = _weigh(distances.square()).to(features.dtype)
    return torch.nn.functional.embedding_bag(indices, features, mode="sum", per_sample_weights=weights)


def _weigh(squared: Tensor) -> Tensor:
    weights = 1.0 / (squared + 1e-8)
    return weights / weights.sum(dim=1, keepdim=True)


class _MixRows(torch.autograd.Function):
    """Weighted sums of rows, with the gradient of the rows."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(indices, weights)
        ctx.rows = len(features)
        return torch.ops.mm3dad.interpolate_rows(features, indices, weights, torch.get_num_threads())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        indices, weights = ctx.saved_tensors
        grad = torch.ops.mm3dad.interpolate_rows_backward(grads[0].contiguous(), indices, weights, ctx.rows, torch.get_num_threads())
        return grad, None, None
