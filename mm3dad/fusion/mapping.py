"""Scores of crossmodal feature mapping: how far each modality lies from what the other predicts, and how the residuals join."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ShapeError
from mm3dad.fusion._check import check_values


def mapping_residual(predicted: Tensor, measured: Tensor, held: Tensor) -> Tensor:
    """Return the Euclidean distance of rows brought to unit length, sqrt(2 - 2 cos), in [0, 2] (CFM; multimodal sheet, 6).

    Args:
        predicted, measured: (P, C) floating features of the same places.
        held: (P,) bool, places that hold a point; the others score 0.

    Returns:
        (P,), dtype of `predicted`.

    Raises:
        ShapeError: shapes that do not fit.
        DataError: NaN or infinite features.
    """
    check_values("predicted", predicted, "(P, C)")
    check_values("measured", measured, "(P, C)")
    if predicted.shape != measured.shape or held.shape != predicted.shape[:1] or held.dtype != torch.bool:
        raise ShapeError(
            f"predicted and measured must both be (P, C) and held (P,) bool, got {tuple(predicted.shape)}, {tuple(measured.shape)} "
            f"and {tuple(held.shape)} {held.dtype}"
        )
    return (F.normalize(predicted, dim=1) - F.normalize(measured, dim=1)).norm(dim=1) * held


def join_product(residuals: Sequence[Tensor]) -> Tensor:
    """Multiply the residuals of the modalities, entry by entry: a place counts where the modalities deny each other (CFM).

    Args:
        residuals: one or more tensors >= 0 of one shape.
    """
    return torch.stack(list(residuals)).prod(0)


def published_divisors(heat: Tensor) -> tuple[float, float, float]:
    """Return the numbers by which CFM's code divides a map, by its own statistics and for each metric another.

    Args:
        heat: (H, W) floating, >= 0.

    Returns:
        For AUPRO (mean of what is not 0), for the pixel AUROC (root of the mean of all), for the image score (root of the mean of
        what is not 0); 1 each for a map of zeros, where the code divides by none.

    Raises:
        ShapeError: heat is not (H, W).
        DataError: NaN or infinite values.
    """
    check_values("heat", heat, "(H, W)")
    found = heat[heat != 0]
    if not len(found):
        return 1.0, 1.0, 1.0
    mean = float(found.double().mean())
    return mean, float(heat.double().mean()) ** 0.5, mean**0.5
