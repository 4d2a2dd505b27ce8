"""Unsupervised feature fusion (UFF) of M3DM: image and point patches of the same place learn to find each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mm3dad.nets.task import Task


class FeatureFusion(nn.Module):
    """A normalised MLP per modality, whose outputs side by side are the fused feature, and a linear head per modality for training.

    Source: M3DM (CVPR 2023); multimodal sheet, 4.5.

    Args:
        xyz_channels, rgb_channels: widths of the patches.
        head: width of the space in which they are compared.
        expansion: hidden width over input width.
    """

    def __init__(self, xyz_channels: int, rgb_channels: int, head: int = 256, expansion: int = 4) -> None:
        super().__init__()
        self.xyz, self.rgb = _block(xyz_channels, expansion), _block(rgb_channels, expansion)
        self.xyz_head, self.rgb_head = nn.Linear(xyz_channels, head), nn.Linear(rgb_channels, head)

    def forward(self, xyz: Tensor, rgb: Tensor) -> Tensor:
        """Fuse patches of the same places, (P, C) and (P, C'): (P, C + C')."""
        return torch.cat([self.xyz(xyz), self.rgb(rgb)], dim=1)

    def loss(self, xyz: Tensor, rgb: Tensor, temperature: float = 1.0) -> Tensor:
        """Contrast pairs (P, C) and (P, C'), row p of one with row p of the other.

        Each image patch must find its own point patch among all of them (InfoNCE, one direction, times 2 temperature, as published).
        """
        query = F.normalize(self.rgb_head(self.rgb(rgb)), dim=1)
        key = F.normalize(self.xyz_head(self.xyz(xyz)), dim=1)
        return 2 * temperature * contrast(query, key, temperature)


def contrast(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE: how badly each query (P, C) finds its own key, the row of the same number, among all keys (P, C) of a batch."""
    return F.cross_entropy(query @ key.T / temperature, torch.arange(len(query), device=query.device))


def _block(channels: int, expansion: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, expansion * channels), nn.GELU(), nn.Linear(expansion * channels, channels)
    )


def fusion_task(
    net: FeatureFusion,
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    steps: int,
    rate: float = 3e-3,
    warm_up: float = 0.1,
    temperature: float = 1.0,
) -> Task:
    """Return the training of the network: AdamW, a linear warm-up and a cosine to zero, in ten epochs or fewer.

    Args:
        net: the network.
        draw: given a generator it returns a batch of aligned patches, (P, C) points and (P, C') image.
        steps, rate: gradient steps and their highest rate; 3e-3 is published.
        warm_up: share of the steps in which the rate rises.
        temperature: of the contrast; 1 is published.
    """
    rise, each = max(1, round(warm_up * steps)), math.ceil(steps / 10)

    def share(step: int) -> float:
        return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return Task(
        "fusion",
        {"rate": rate, "steps": steps, "warm_up": warm_up, "temperature": temperature},
        {"net": net},
        lambda: torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.95)),
        math.ceil(steps / each),
        lambda epoch, generator: (draw(generator) for _ in range(min(each, steps - epoch * each))),
        lambda pair: net.loss(*pair, temperature),
        rate=share,
    )
