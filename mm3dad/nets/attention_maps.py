"""Where a diffusion U-Net looks for each word, and SeaS's loss that puts the words of a defect on the defect.

Decoupled anomaly alignment, SeaS (ICCV 2025, arXiv 2410.14987), section 3.2. Maps come through a processor of the public diffusers API.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mm3dad.nets.defect_words import Prompt

LEVELS = (1, 2)  # down blocks at a half and a quarter of the latent's side


class _Keep:
    """Plain cross attention that keeps its probabilities, mean over heads."""

    def __init__(self, kept: list[Tensor]) -> None:
        self._kept = kept

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        told = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (attn.head_to_batch_dim(part) for part in (attn.to_q(hidden_states), attn.to_k(told), attn.to_v(told)))
        weights = attn.get_attention_scores(query, key, attention_mask)
        self._kept.append(weights.unflatten(0, (len(hidden_states), -1)).mean(1))
        found = attn.batch_to_head_dim(torch.bmm(weights, value))
        for layer in attn.to_out:
            found = layer(found)
        return found / attn.rescale_output_factor


@contextmanager
def watch_attention(unet: Any, levels: tuple[int, ...] = LEVELS) -> Iterator[dict[int, list[Tensor]]]:
    """Keep the cross attention of a UNet2DConditionModel's down blocks while the block runs.

    Args:
        unet: a diffusers model; it has its own processors back afterwards.
        levels: down blocks.

    Yields:
        level -> one (B, h w, T) per layer, filled by each forward pass.
    """
    before = unet.attn_processors
    kept: dict[int, list[Tensor]] = {level: [] for level in levels}

    def choose(name: str) -> Any:
        for level in levels:
            if name.startswith(f"down_blocks.{level}.") and ".attn2." in name:
                return _Keep(kept[level])
        return before[name]

    unet.set_attn_processor({name: choose(name) for name in before})
    try:
        yield kept
    finally:
        unet.set_attn_processor(before)


def shrink_masks(masks: Tensor, latent: int, levels: tuple[int, ...] = LEVELS) -> dict[int, Tensor]:
    """Return the masks (B, H, W) at each level, (B, h, w) in [0, 1]: to the latent's side bilinearly, then halved by the maximum.

    The first step is low-passed, or a defect of a few pixels would fall between the samples.
    """
    small = functional.interpolate(masks[:, None], size=(latent, latent), mode="bilinear", antialias=True)
    return {level: functional.max_pool2d(small, 2**level, ceil_mode=True)[:, 0] for level in levels}


def align_attention(maps: dict[int, list[Tensor]], prompts: list[Prompt], masks: dict[int, Tensor]) -> Tensor:
    """Return the loss that binds a defect's words to its area and keeps the part's word out of it.

    Sum over levels of mean (A_df - M)^2 + mean over M > 0 of (A_ob - (1 - M))^2, with A_df the mean over the defect's words, A_ob the
    part's word, each scaled to [0, 1] within its own map.

    Args:
        maps: of `watch_attention`.
        prompts: one of a defect per sample.
        masks: of `shrink_masks`.
    """
    total = next(iter(masks.values())).new_zeros(())
    for level, layers in maps.items():
        seen = torch.stack(layers).mean(0)
        mask = masks[level].flatten(1).to(seen.dtype)
        defect = _stretch(torch.stack([one[:, list(prompt.defect)].mean(1) for one, prompt in zip(seen, prompts, strict=True)]))
        part = _stretch(torch.stack([one[:, prompt.part] for one, prompt in zip(seen, prompts, strict=True)]))
        inside = (mask > 0).to(seen.dtype)
        emptied = ((part - (1 - mask)).square() * inside).sum() / inside.sum().clamp_min(1)
        total = total + (defect - mask).square().mean() + emptied
    return total


def _stretch(maps: Tensor) -> Tensor:
    """Scale each row of (B, P) to [0, 1]; a constant one becomes 0."""
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-8)
