"""Late fusion: calibrated scores or maps of the modalities become one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ShapeError, nearest_name

RULES = ("sum", "max", "rss")


def combine(maps: Sequence[Tensor], rule: str = "sum") -> Tensor:
    """Combine calibrated maps (or scores) of the modalities, entry by entry.

    Calibrated scores are 0 for the ordinary, so what a blind modality adds is little noise:
    "sum" counts agreement in full: two weak signs at one place make a strong one; the default, since a defect that both
    modalities see faintly gains most from fusion while one that a single modality sees clearly stands out anyway.
    "max" keeps the stronger modality alone: best where defects show in one modality only.
    "rss", the root of the summed squares, lies between: a second equal sign raises a score by 41 %.

    Args:
        maps: one or more floating tensors >= 0 of the same shape and device.
        rule: one of the three.

    Returns:
        A tensor of that shape; a single map comes back unchanged by each rule.

    Raises:
        ConfigError: unknown rule; the message names the nearest known one.
        ShapeError: no map, or maps of different shape.
        DataError: NaN, infinite or negative entries.
    """
    if rule not in RULES:
        raise ConfigError(f"unknown rule {rule!r}; {nearest_name(rule, RULES)}")
    if not len(maps) or any(part.shape != maps[0].shape or not part.is_floating_point() for part in maps):
        got = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in maps) or "none"
        raise ShapeError(f"maps must be one or more floating tensors of one shape, got {got}; bring all to the same size first")
    stacked = torch.stack(list(maps))
    if not bool((stacked.isfinite() & (stacked >= 0)).all()):
        raise DataError("maps must be finite and >= 0, got NaN, infinite or negative entries; calibrate the scores first")
    if rule == "sum":
        return stacked.sum(0)
    return stacked.amax(0) if rule == "max" else stacked.square().sum(0).sqrt()
