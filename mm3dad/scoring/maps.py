"""From patch scores to pixel maps, and from maps to one image score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.scoring._check import check_values

BLUR_STRETCH = 128  # pixels that one product blurs


def upsample_map(scores: Tensor, size: tuple[int, int] | int, align_corners: bool = False) -> Tensor:
    """Resize patch scores to pixels, bilinear.

    Args:
        scores: (h, w) floating.
        size: (H, W), or one number for a square.
        align_corners: False puts cell centres at half pixels, as features are pooled; True is MuSc-V2's form (7.6).

    Returns:
        (H, W), dtype of `scores`.

    Raises:
        ShapeError: scores are not (h, w).
        DataError: NaN or infinite scores.
        ConfigError: a size below 1.
    """
    check_values("scores", scores, "(h, w)")
    size = _check_size(size)
    return functional.interpolate(scores[None, None], size=size, mode="bilinear", align_corners=align_corners)[0, 0]


def smooth_map(scores: Tensor, sigma: float = 4.0, valid: Tensor | None = None) -> Tensor:
    """Blur a map with a Gaussian cut at 4 sigma; at the border the map is mirrored, so a constant map stays constant.

    Same as scipy.ndimage.gaussian_filter with its defaults. With `valid`, only measured pixels take part, each pixel getting the
    weighted mean of those around it: a gap in a defect takes the defect's scores instead of washing them out (normalised
    convolution; Knutsson and Westin, CVPR 1993). Where less than a tenth of the weight around is measured, the map fades to 0.

    Args:
        scores: (H, W) floating.
        sigma: standard deviation in pixels; 0 returns a copy.
        valid: (H, W) bool, the measured pixels; none: all.

    Raises:
        ShapeError: scores are not (H, W), or valid is not bool of that shape.
        DataError: NaN or infinite scores.
        ConfigError: sigma is negative or not a number.
    """
    check_values("map", scores, "(H, W)")
    if not 0 <= sigma < math.inf:
        raise ConfigError(f"sigma must be a finite number of pixels >= 0, got {sigma}; 4 is usual at 224 x 224")
    if valid is not None and (valid.shape != scores.shape or valid.dtype != torch.bool):
        raise ShapeError(f"valid must be bool {tuple(scores.shape)} like the map, got {valid.dtype} {tuple(valid.shape)}")
    if int(4 * sigma + 0.5) == 0:
        return scores.clone()
    if valid is None:
        return _blur(scores, sigma)
    total, weight = _blur(torch.stack([scores * valid, valid.to(scores.dtype)]), sigma)
    return total / weight.clamp_min(0.1)


def _blur(scores: Tensor, sigma: float) -> Tensor:
    """Blur the last two dimensions."""
    # Many taps over one channel: as products with a band matrix, a stretch of pixels at a time, they run at the speed of the products.
    radius = int(4 * sigma + 0.5)
    across, along = (_band(length, sigma, scores.dtype, scores.device) for length in (scores.shape[-1], scores.shape[-2]))
    scores = torch.cat([scores[..., near] @ across[own, near].T for own, near in _stretches(scores.shape[-1], radius)], dim=-1)
    return torch.cat([along[own, near] @ scores[..., near, :] for own, near in _stretches(scores.shape[-2], radius)], dim=-2)


def _stretches(length: int, radius: int) -> list[tuple[slice, slice]]:
    """Return stretches of pixels with all the pixels that a blur of them looks at."""
    starts = range(0, length, BLUR_STRETCH)
    return [(slice(at, at + BLUR_STRETCH), slice(max(0, at - radius), at + BLUR_STRETCH + radius)) for at in starts]


@lru_cache(maxsize=4)
def _band(length: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the (length, length) matrix that blurs a line of pixels, continued by its mirror image (c b a | a b c | c b a)."""
    radius = int(4 * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1, device=device)
    kernel = torch.exp(-0.5 * (offset.to(dtype) / sigma) ** 2)
    pixel = (torch.arange(length, device=device)[:, None] + offset) % (2 * length)
    pixel = torch.minimum(pixel, 2 * length - 1 - pixel)
    return torch.zeros(length, length, dtype=dtype, device=device).scatter_add_(1, pixel, (kernel / kernel.sum()).expand(length, -1))


def blur_5x5(scores: Tensor, pad: str = "replicate") -> Tensor:
    """Blur a map with a 5 x 5 Gaussian of sigma 1 (RAD; retrieval sheet, 2.3).

    Args:
        scores: (H, W) floating.
        pad: "replicate" continues the border; "constant" puts zeros there as published, which damps scores at the border.

    Raises:
        ShapeError: scores are not (H, W).
        DataError: NaN or infinite scores.
    """
    check_values("map", scores, "(H, W)")
    kernel = gaussian_5x5().to(scores)
    return functional.conv2d(functional.pad(scores[None, None], (2, 2, 2, 2), mode=pad), kernel[None, None])[0, 0]


def gaussian_5x5() -> Tensor:
    """Return the (5, 5) float32 kernel of `blur_5x5`; its sum is 1."""
    offset = torch.arange(-2.0, 3.0)
    weight = torch.exp(-0.5 * offset**2)
    kernel = weight[:, None] * weight
    return kernel / kernel.sum()


def smooth_boxes(scores: Tensor, sides: Sequence[int] = (5, 5, 5, 5, 5, 7, 7, 7), zero_padded: bool = False) -> Tensor:
    """Blur a map by box means one after another (CFM and CIF; sheets 6 and 1.6).

    Args:
        scores: (H, W) floating.
        sides: odd side lengths of the boxes, in pixels.
        zero_padded: count zeros beyond the border, as published, which darkens it; else the border is repeated.

    Raises:
        ShapeError: scores are not (H, W).
        DataError: NaN or infinite scores.
        ConfigError: a side that is not odd and positive.
    """
    check_values("map", scores, "(H, W)")
    if any(side < 1 or side % 2 == 0 for side in sides):
        raise ConfigError(f"sides must be odd and at least 1, got {tuple(sides)}; 5 five times, then 7 three times is published")
    heat = scores[None, None]
    for side in sides:
        edge = (side // 2,) * 4
        padded = functional.pad(heat, edge) if zero_padded else functional.pad(heat, edge, mode="replicate")
        heat = functional.avg_pool2d(padded, side, stride=1)
    return heat[0, 0]


def blur_8bit(scores: Tensor, radius: int = 4) -> Tensor:
    """Blur as BTF, M3DM and MuSc-V2 publish it: divide by the maximum, cut to 8 bits, Pillow's GaussianBlur, scale back.

    Kept for comparison with their numbers only: 256 levels make ties. `smooth_map` is the clean form.

    Args:
        scores: (H, W) floating, >= 0.
        radius: Pillow's radius, in pixels.

    Returns:
        (H, W), dtype and device of `scores`; an all-zero map stays zero (the published code divides by zero).

    Raises:
        ShapeError: scores are not (H, W).
        DataError: NaN, infinite or negative scores.
    """
    from PIL import Image, ImageFilter

    check_values("map", scores, "(H, W)")
    if float(scores.min()) < 0:
        raise DataError(f"map must be >= 0 to be cut to 8 bits, got {float(scores.min()):.3g}; use smooth_map")
    peak = scores.max()
    if float(peak) == 0:
        return scores.clone()
    bytes_ = (scores / peak * 255).to(torch.uint8).cpu().numpy()
    blurred = np.array(Image.fromarray(bytes_).filter(ImageFilter.GaussianBlur(radius)))
    return torch.from_numpy(blurred).to(scores) / 255 * peak


def pixel_map(scores: Tensor, size: tuple[int, int], sigma: float = 4.0) -> Tensor:
    """Carry patch scores to pixels and smooth them, the width of the Gaussian growing with the image.

    Args:
        scores: (h, w) floating, >= 0.
        size: (H, W).
        sigma: in pixels of a 224 x 224 image; 0 smooths nothing.

    Returns:
        (H, W).

    Raises:
        ShapeError, DataError, ConfigError: as `upsample_map` and `smooth_map`.
    """
    heat = upsample_map(scores, size)
    return smooth_map(heat, sigma * (size[0] * size[1]) ** 0.5 / 224) if sigma else heat


def points_to_map(values: Tensor, pixel_index: Tensor, size: tuple[int, int] | int) -> Tensor:
    """Put one score per point at the point's pixel; 0 elsewhere, and the highest score where points share a pixel.

    Args:
        values: (N,) floating, >= 0.
        pixel_index: (N,) int64, row * W + column.
        size: (H, W), or one number for a square.

    Returns:
        (H, W), dtype of `values`.

    Raises:
        ShapeError: values and pixel_index differ in length, or an index lies outside the map.
        DataError: NaN or infinite values.
        ConfigError: a size below 1.
    """
    height, width = _check_size(size)
    if values.numel():
        check_values("values", values, "(N,)")
    if values.shape != pixel_index.shape or pixel_index.dtype != torch.int64:
        raise ShapeError(f"pixel_index must be int64 {tuple(values.shape)} like values, got {pixel_index.dtype} {tuple(pixel_index.shape)}")
    if pixel_index.numel() and (int(pixel_index.min()) < 0 or int(pixel_index.max()) >= height * width):
        raise ShapeError(f"pixel_index must lie in 0 .. {height * width - 1}, got {int(pixel_index.min())} .. {int(pixel_index.max())}")
    return values.new_zeros(height * width).scatter_reduce(0, pixel_index, values, "amax").view(height, width)


def top_fraction_score(scores: Tensor, fraction: float) -> float:
    """One score of a map: the mean of its highest max(1, int(fraction * n)) values, steadier than the maximum alone.

    Args:
        scores: (H, W) floating.
        fraction: in [0, 1]; 0 gives the maximum.

    Raises:
        ShapeError: scores are not (H, W).
        DataError: NaN or infinite scores.
        ConfigError: fraction is out of range.
    """
    check_values("map", scores, "(H, W)")
    if not 0 <= fraction <= 1:
        raise ConfigError(f"fraction must lie in [0, 1], got {fraction}; 0.01 takes the top percent, 0 the maximum")
    return float(scores.flatten().topk(max(1, int(fraction * scores.numel()))).values.mean())


def _check_size(size: tuple[int, int] | int) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ConfigError(f"size must be (H, W) or one number, all at least 1, got {size}")
    return int(pair[0]), int(pair[1])
