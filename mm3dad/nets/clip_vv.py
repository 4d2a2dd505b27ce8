"""CLIP's image transformer with a second path whose queries and keys are its values, which keeps patch features local.

After AnomalyCLIP as MRAD uses it (retrieval sheet, 3.1). Works on the image tower of an open_clip model, whose own path is unchanged.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


@torch.no_grad()
def encode_image(visual: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image descriptor and the local features of the value-value path.

    Args:
        visual: `open_clip.transformer.VisionTransformer`; all blocks but the first run the second path.
        images: (B, 3, H, W), normalised, sides multiples of the patch; the positions are resized to the grid.

    Returns:
        (B, E) class token of the plain path times the projection, without the final norm as published;
        (B, P, C) patches of the second path after the final norm, not projected.
    """
    x = visual.conv1(images)
    grid = (int(x.shape[2]), int(x.shape[3]))
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
    x = visual.ln_pre(x + _resize_positions(visual.positional_embedding, grid).to(x.dtype))
    local: Tensor | None = None
    for number, block in enumerate(visual.transformer.resblocks):
        normed = block.ln_1(x)
        if number:
            local = (x if local is None else local) + _attend_values(block.attn, normed)
        x = x + block.ls_1(block.attn(normed, normed, normed, need_weights=False)[0])
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    if local is None:
        local = x
    return x[:, 0] @ visual.proj, visual.ln_post(local)[:, 1:]


def _attend_values(attention: Any, x: Tensor) -> Tensor:
    """Self-attention with the values in place of queries and keys. x: (B, T, C)."""
    width, heads = attention.embed_dim, attention.num_heads
    value = F.linear(x, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    value = value.view(len(x), -1, heads, width // heads).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(value, value, value)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def _resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize the (1 + n, C) positions of a square grid to another, bilinear; the class token keeps its own."""
    side = math.isqrt(len(positions) - 1)
    if grid == (side, side):
        return positions
    cells = positions[1:].T.reshape(1, -1, side, side)
    resized = F.interpolate(cells, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], resized[0].flatten(1).T])
