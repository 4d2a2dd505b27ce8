"""Patch distances judged by what normal patches of the same kind score when they are held out."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.errors import ShapeError


def judge_rows(distances: Tensor, held: Tensor, spread: float, prior: float = 0.25) -> Tensor:
    """Put distances on the scale of the bank rows they matched: (distance - mean) / (deviation + prior * spread).

    Rows in a busy texture lie far from their nearest relatives in other normal samples, rows of a plain surface near: the same
    distance means little in one place and much in the other. Mean and deviation are taken over the held-out scores of the K
    matched rows; the deviation is enlarged by a share of the overall spread, since K values tell it badly.

    Args:
        distances: (P, K) distances to K matched rows.
        held: (P, K) the held-out scores of these rows: their own distance to the nearest row of other samples.
        spread: standard deviation of all held-out scores, >= 0.
        prior: share of `spread` in every unit.
    Returns:
        (P, K), 0 for a patch as far from the bank as its matches are from each other.
    Raises:
        ShapeError: the two differ in shape.
    """
    if distances.ndim != 2 or distances.shape != held.shape:
        raise ShapeError(f"distances and held must both be (P, K), got {tuple(distances.shape)} and {tuple(held.shape)}")
    deviation = held.std(1, correction=0, keepdim=True)
    unit = (deviation + prior * spread).clamp_min(torch.finfo(distances.dtype).eps)
    return (distances - held.mean(1, keepdim=True)) / unit


def lift(values: Tensor) -> Tensor:
    """Make z-values positive in their order: 1 + z from 0 on, exp(z) below, so that scores are >= 0 and good parts do not tie."""
    return torch.where(values >= 0, 1 + values, values.clamp(max=0).exp())
