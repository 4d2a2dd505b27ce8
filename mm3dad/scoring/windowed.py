"""Cosine scores of patches against patches of other images near the same place."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ConfigError, ShapeError

BLOCK_VALUES = 2**22  # float32 values of the bank in work at once: 16 MiB


def windowed_scores(patches: Tensor, bank: Tensor, grid: tuple[int, int], window: int | None = None) -> Tensor:
    """Score each patch by 1 - its highest cosine with the bank's patches at most `window` cells away.

    One batched product per block of images, and no loop over patches. RAD (arXiv 2601.22763; retrieval sheet, 2.3).

    Args:
        patches: (P, C) floating, row-major cells; zero rows have cosine 0 with everything.
        bank: (K, P, C) floating, any precision: patches of K images on the same grid. Blocks of it are brought to float32 in turn.
        grid: (h, w), P = h * w.
        window: rows and columns to each side, clipped at the border; None searches all places.

    Returns:
        (P,) float32 in [0, 2].

    Raises:
        ShapeError: patches, bank and grid do not belong together, or the bank is empty.
        ConfigError: a negative window.
    """
    height, width = grid
    if patches.ndim != 2 or bank.ndim != 3 or bank.shape[1:] != patches.shape or len(patches) != height * width or not len(bank):
        raise ShapeError(
            f"patches (P, C) and bank (K, P, C) must lie on one grid {height} x {width}, got {tuple(patches.shape)} and "
            f"{tuple(bank.shape)}; extract both at one image size"
        )
    if window is not None and window < 0:
        raise ConfigError(f"window must be 0 or more cells, or None, got {window}")
    query = F.normalize(patches.float(), dim=1)
    best = torch.full((len(query),), -1.0, device=query.device)
    around = _look_around(query, grid, window) if window is not None and window < max(height, width) - 1 else None
    for block in bank.split(max(1, BLOCK_VALUES // max(1, patches.numel()))):
        found = _best_anywhere(query, block) if around is None else _best_in_window(around, block, grid)
        best = torch.maximum(best, found)
    return (1 - best).clamp(0, 2)


def _best_anywhere(query: Tensor, block: Tensor) -> Tensor:
    best = torch.full((len(query),), -1.0, device=query.device)
    for image in block:
        best = torch.maximum(best, (query @ F.normalize(image.to(query), dim=1).T).amax(1))
    return best


def _look_around(query: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Return the query cells around each cell, (P, side * side, C), zeros beyond the border."""
    padded = F.pad(query.view(*grid, -1), (0, 0, window, window, window, window))
    side = 2 * window + 1
    return padded.unfold(0, side, 1).unfold(1, side, 1).permute(0, 1, 3, 4, 2).reshape(len(query), side * side, -1)


def _best_in_window(around: Tensor, block: Tensor, grid: tuple[int, int]) -> Tensor:
    """Compare each cell of the bank with all query cells around it in one product, which reads the bank once."""
    height, width = grid
    side = math.isqrt(around.shape[1])
    window = side // 2
    # (P, K, C): what a cell holds in all images lies together.
    rows = torch.empty(block.shape[1], len(block), block.shape[2], device=around.device).copy_(block.transpose(0, 1))
    length = torch.linalg.vector_norm(rows, dim=2, keepdim=True).clamp_min_(1e-12)
    cosines = (rows @ around.transpose(1, 2)).div_(length)
    by_shift = cosines.amax(1).view(height, width, side, side)
    best = torch.full((height, width), -1.0, device=around.device)
    for down in range(-min(window, height - 1), min(window, height - 1) + 1):
        own_rows, their_rows = _overlap(height, down)
        for right in range(-min(window, width - 1), min(window, width - 1) + 1):
            own_columns, their_columns = _overlap(width, right)
            found = by_shift[their_rows, their_columns, window - down, window - right]
            best[own_rows, own_columns] = torch.maximum(best[own_rows, own_columns], found)
    return best.flatten()


def _overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Return the cells that have a partner `shift` cells on, and those partners."""
    return slice(max(0, -shift), length - max(0, shift)), slice(max(0, shift), length - max(0, -shift))
