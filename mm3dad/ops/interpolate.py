"""Spread features of centres over all points of a cloud."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.errors import ShapeError
from mm3dad.ops._check import check_rows, check_same_device
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
    distances, indices = nearest_neighbors(points.double(), centers.double(), min(3, len(centers)))
    weights = 1.0 / (distances.square() + 1e-8)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(features.dtype)
    return torch.nn.functional.embedding_bag(indices, features, mode="sum", per_sample_weights=weights)
