"""Patch distances judged by what the matched normal patches score when they are held out."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, ShapeError


def judge_rows(distances: Tensor, held: Tensor, share: float = 0.5) -> Tensor:
    """Take off a share of what the matched rows themselves score: distance - share * mean of their held-out scores.

    Rows of a busy texture lie far from their nearest relatives in other normal samples, rows of a plain surface near: the same
    distance means less in the one place than in the other. Taking all of it off would trust these few values too much (and make
    plain dark regions, where they are tiny, alarm at any drift of the camera); half of it keeps most of either view.

    Args:
        distances: (P, K) distances to K matched rows.
        held: (P, K) the held-out scores of these rows: their own distance to the nearest row of other samples.
        share: in [0, 1]; 0 leaves the distances as they are.
    Returns:
        (P, K), in the unit of the distances.
    Raises:
        ShapeError: the two differ in shape.
        ConfigError: share is out of range.
    """
    if distances.ndim != 2 or distances.shape != held.shape:
        raise ShapeError(f"distances and held must both be (P, K), got {tuple(distances.shape)} and {tuple(held.shape)}")
    if not 0 <= share <= 1:
        raise ConfigError(f"share must lie in [0, 1], got {share}; 0.5 is the default")
    return distances - share * held.mean(1, keepdim=True)


def lift(values: Tensor) -> Tensor:
    """Make z-values positive in their order: 1 + z from 0 on, exp(z) below, so that scores are >= 0 and good parts do not tie."""
    return torch.where(values >= 0, 1 + values, values.clamp(max=0).exp())
