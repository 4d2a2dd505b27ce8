"""Weighted mean of the scores that several layers of one backbone give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm3dad.errors import ConfigError


def fuse_layers(scores: Tensor, weights: Sequence[float] = ()) -> Tensor:
    """Return the weighted mean over layers (RAD; retrieval sheet, 2.3).

    Args:
        scores: (L, P) floating.
        weights: one per layer, >= 0, brought to sum 1; empty: equal.

    Returns:
        (P,) floating.

    Raises:
        ConfigError: another number of weights than layers, negative weights, or only zeros.
    """
    values = torch.tensor(list(weights) or [1.0] * len(scores), dtype=scores.dtype, device=scores.device)
    if len(values) != len(scores) or not bool((values >= 0).all()) or not 0 < float(values.sum()) < float("inf"):
        raise ConfigError(f"layer_weights must be {len(scores)} finite numbers >= 0 with a positive sum, got {tuple(weights)}")
    return values / values.sum() @ scores
