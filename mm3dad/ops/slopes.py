"""Slopes of maps."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def find_slopes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return how fast maps rise down and across, per pixel, by 3 x 3 Sobel windows mirrored at the border.

    Args:
        values: (B, C, H, W) floating, H and W at least 2.
    Returns:
        two (B, C, H, W).
    """
    # Differences and not a convolution, which autocast would round to a few bits before it takes small ones of large numbers.
    around = functional.pad(values, (1, 1, 1, 1), mode="reflect")
    down, across = around[..., 2:, :] - around[..., :-2, :], around[..., 2:] - around[..., :-2]
    return _weigh(down[..., :-2], down[..., 1:-1], down[..., 2:]), _weigh(across[..., :-2, :], across[..., 1:-1, :], across[..., 2:, :])


def _weigh(before: Tensor, at: Tensor, after: Tensor) -> Tensor:
    return (before + 2 * at + after) / 8
