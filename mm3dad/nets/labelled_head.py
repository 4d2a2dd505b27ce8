"""Learned projections of queries and keys in front of a labelled memory, and the losses that fit them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PairProjection(nn.Module):
    """Two linear maps, one for queries and one for keys; outputs are not normalised (MRAD-FT; retrieval sheet, 3.4).

    Args:
        channels: of queries and keys.
        width: of what comes out.
        isometric: start as one map that keeps lengths and angles, as far as `width` allows, which is the training-free form. False draws
            both at random, as published, and what queries and rows have in common is learned anew.
    """

    def __init__(self, channels: int, width: int, isometric: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(channels, width)
        self.key = nn.Linear(channels, width)
        if isometric:
            nn.init.orthogonal_(self.query.weight)
            nn.init.zeros_(self.query.bias)
            self.key.load_state_dict(self.query.state_dict())

    def forward(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projected (Q, width) queries and (M, width) keys."""
        return self.query(queries), self.key(keys)


class MemoryHead(nn.Module):
    """The projections of both levels of a labelled memory (MRAD-FT).

    Args:
        image_channels: of image descriptors and of what comes out at either level.
        patch_channels: of patches.
        isometric: as `PairProjection`.
    """

    def __init__(self, image_channels: int, patch_channels: int, isometric: bool = True) -> None:
        super().__init__()
        self.image = PairProjection(image_channels, image_channels, isometric)
        self.patch = PairProjection(patch_channels, image_channels, isometric)


def focal_loss(probability: Tensor, mask: Tensor, gamma: float = 2.0, smooth: float = 1e-5) -> Tensor:
    """Return the focal loss of a map of class probabilities, mean over pixels, without class weights.

    Args:
        probability: (B, 2, H, W) floating, sums to 1 over classes.
        mask: (B, H, W), 1 on defects.
        gamma: exponent that takes weight off pixels already right.
        smooth: the one-hot target is clamped to [smooth, 1 - smooth].
    """
    target = torch.stack([1 - mask, mask], dim=1).to(probability).clamp(smooth, 1 - smooth)
    right = (target * probability).sum(1) + smooth
    return ((1 - right).clamp_min(0).pow(gamma) * -right.log()).mean()


def dice_loss(probability: Tensor, mask: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - the Dice overlap of a map with its mask, mean over the batch.

    Args:
        probability: (B, H, W) floating in [0, 1].
        mask: (B, H, W), 1 on defects.
        smooth: added to both sides of the fraction, so that empty masks are defined.
    """
    a, b = probability.flatten(1), mask.flatten(1).to(probability)
    return (1 - (2 * (a * b).sum(1) + smooth) / (a.sum(1) + b.sum(1) + smooth)).mean()


def scaled_cross_entropy(probability: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Return the cross entropy that takes probabilities / temperature as logits: a second softmax, as MRAD publishes it.

    Args:
        probability: (B, 2) floating.
        labels: (B,) int64.
    """
    return nn.functional.cross_entropy(probability / temperature, labels)


def segmentation_losses(cells: Tensor, mask: Tensor, both: bool = False) -> dict[str, Tensor]:
    """Return the focal and the Dice loss of cell probabilities, brought to the mask's pixels first, as terms to be summed.

    Args:
        cells: (B, 2, h, w) floating, normal and anomalous, sums to 1 over the two.
        mask: (B, H, W), 1 on defects.
        both: add the Dice loss of the normal channel with what is no defect (MRAD-CLIP).
    """
    maps = nn.functional.interpolate(cells, size=mask.shape[1:], mode="bilinear")
    losses = {"focal": focal_loss(maps, mask), "dice": dice_loss(maps[:, 1], mask)}
    return losses | ({"dice_normal": dice_loss(maps[:, 0], 1 - mask)} if both else {})
