"""Losses of segmentation and of reconstruction that several methods train with."""

from __future__ import annotations

import torch
from torch import Tensor


def focal_loss(probability: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the mean of -(1 - p)^gamma ln p, with p the probability given to the truth: what is easy counts little.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017; without class weights, as in DRAEM and GLFM.

    Args:
        probability: floating in [0, 1], of a defect.
        target: 0 or 1, same shape.
        gamma: 0 gives the cross entropy.
    """
    truth = torch.where(target > 0, probability, 1 - probability).clamp_min(1e-5)
    return (-((1 - truth) ** gamma) * truth.log()).mean()


def dice_loss(probability: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - (2 sum(p t) + smooth) / (sum p + sum t + smooth): how little a region and its probability overlap.

    Args:
        probability: floating in [0, 1], of a defect.
        target: 0 or 1, same shape.
        smooth: keeps empty regions defined.
    """
    target = target.to(probability.dtype)
    return 1 - (2 * (probability * target).sum() + smooth) / (probability.sum() + target.sum() + smooth)


def structural_similarity(one: Tensor, other: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Return SSIM at each pixel, in [-1, 1]; images in [0, 1], Gaussian window, statistics of the pixels inside the picture.

    Source: Wang et al., Image Quality Assessment, IEEE TIP 2004.

    Args:
        one, other: (B, C, H, W) floating.
        window: odd side of the window.
        sigma: of the window.
    Returns:
        (B, C, H, W).
    """
    # Variances are small differences of large numbers: in bfloat16 nothing is left of them.
    with torch.autocast(one.device.type, enabled=False):
        return _compare_windows(*(values if values.dtype == torch.float64 else values.float() for values in (one, other)), window, sigma)


def _compare_windows(one: Tensor, other: Tensor, window: int, sigma: float) -> Tensor:
    rows, columns = (_weigh_windows(side, window, sigma, one) for side in one.shape[2:])

    # Matrices of windows: a CPU convolves single channels ten times slower, at the sides pictures are trained at.
    def blur(values: Tensor) -> Tensor:
        return rows @ (values @ columns.T)

    mean, mean_, square, square_, product = (blur(values) for values in (one, other, one * one, other * other, one * other))
    spread, spread_, shared = square - mean * mean, square_ - mean_ * mean_, product - mean * mean_
    return (2 * mean * mean_ + 1e-4) * (2 * shared + 9e-4) / ((mean**2 + mean_**2 + 1e-4) * (spread + spread_ + 9e-4))


def _weigh_windows(side: int, window: int, sigma: float, like: Tensor) -> Tensor:
    """Return the weights (side, side) with which the pixels of a line enter the mean around each of them."""
    place = torch.arange(side, dtype=like.dtype, device=like.device)
    offset = place[:, None] - place
    weight = torch.exp(-(offset**2) / (2 * sigma**2)) * (offset.abs() <= window // 2)
    return weight / weight.sum(1, keepdim=True)
