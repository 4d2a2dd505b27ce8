"""Coreset: the few rows that stand for a whole bank."""

from __future__ import annotations

from torch import Tensor

from mm3dad.ops.k_center import pick_centers


def select_coreset(features: Tensor, count: int, start: int = 0) -> Tensor:
    """Pick the rows whose farthest neighbour in the bank is nearest: the exact greedy k-centre choice of PatchCore.

    Exact means the picks of the plain algorithm in float64, without a random projection; rows that cannot win are merely not
    compared again. Equal distances go to the lowest index; duplicates are picked last.
    Source: Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, algorithm 1.

    Args:
        features: (N, C) floating, finite; any unit, distances are Euclidean.
        count: number of rows to keep, 1 to N.
        start: index of the first pick.
    Returns:
        (count,) int64 indices into `features`, in the order of picking, on the same device.
    Raises:
        ShapeError: `features` is not a finite floating (N, C) tensor.
        ConfigError: `count` or `start` is out of range.
    """
    return pick_centers(features, count, start, name="features")
