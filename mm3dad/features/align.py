"""Alignment of pixels, patches and points: all three views of a part share the image grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mm3dad.errors import ConfigError, ShapeError

Size = int | tuple[int, int]


def patch_of_pixel(pixel_index: Tensor, image_size: Size, grid: Size) -> Tensor:
    """Find the patch that holds each pixel, when the image is cut into a grid of equal patches.

    Args:
        pixel_index: (N,) integers, row * W + column.
        image_size: (H, W) pixels, or one number for a square.
        grid: (h, w) patches, or one number for a square.
    Returns:
        (N,) int64, row * w + column.
    Raises:
        ShapeError: `pixel_index` is not an integer vector or leaves the image.
        ConfigError: a size below 1.
    """
    (H, W), (h, w) = _pair("image_size", image_size), _pair("grid", grid)
    _check_pixels(pixel_index, H * W)
    row, column = pixel_index.long() // W, pixel_index.long() % W
    return (row * h // H) * w + column * w // W


def scatter_points(values: Tensor, pixel_index: Tensor, size: Size) -> Tensor:
    """Put one feature vector per point at the point's pixel, zeros elsewhere.

    Args:
        values: (N, C).
        pixel_index: (N,) integers, row * W + column, no pixel twice.
        size: (H, W), or one number for a square.
    Returns:
        (C, H, W), dtype and device of `values`.
    Raises:
        ShapeError: the shapes do not fit, or an index leaves the image.
        ConfigError: a size below 1.
    """
    H, W = _pair("size", size)
    _check_pixels(pixel_index, H * W)
    if values.ndim != 2 or len(values) != len(pixel_index):
        raise ShapeError(f"values must be (N, C) with N = {len(pixel_index)} as in pixel_index, got {tuple(values.shape)}")
    flat = values.new_zeros((H * W, values.shape[1]))
    flat[pixel_index.long()] = values
    return flat.T.reshape(-1, H, W)


def pool_map(features: Tensor, grid: Size) -> Tensor:
    """Average 3 x 3 neighbours (stride 1, no padding) and pool to a grid of patches, as BTF and M3DM do.

    The zeros at missing points take part, as published.

    Args:
        features: (C, H, W) floating, H and W at least 3.
        grid: (h, w) patches, or one number for a square.
    Returns:
        (C, h, w).
    Raises:
        ShapeError: `features` is not such a map.
        ConfigError: a size below 1.
    """
    _check_map(features, least=3)
    return resize_map(functional.avg_pool2d(features, 3, stride=1), grid)


def resize_map(features: Tensor, grid: Size) -> Tensor:
    """Bring a map to another grid by averages of bins; a finer grid repeats cells, so patches stay aligned.

    Args:
        features: (C, H, W) floating.
        grid: (h, w), or one number for a square.
    Returns:
        (C, h, w).
    Raises:
        ShapeError: `features` is not such a map.
        ConfigError: a size below 1.
    """
    _check_map(features, least=1)
    return functional.adaptive_avg_pool2d(features, _pair("grid", grid))


def _pair(name: str, size: Size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ConfigError(f"{name} must be (rows, columns) or one number, all at least 1, got {size}")
    return int(pair[0]), int(pair[1])


def _check_pixels(pixel_index: Tensor, count: int) -> None:
    if pixel_index.ndim != 1 or pixel_index.is_floating_point() or pixel_index.dtype == torch.bool:
        raise ShapeError(f"pixel_index must be (N,) integers, got {tuple(pixel_index.shape)} {pixel_index.dtype}")
    if len(pixel_index) and (int(pixel_index.min()) < 0 or int(pixel_index.max()) >= count):
        raise ShapeError(f"pixel_index must lie in 0 to {count - 1}, got {int(pixel_index.min())} to {int(pixel_index.max())}")


def _check_map(features: Tensor, least: int) -> None:
    if features.ndim != 3 or not features.is_floating_point() or min(features.shape[1:]) < least or not len(features):
        raise ShapeError(f"features must be floating (C, H, W), H and W at least {least}, got {tuple(features.shape)} {features.dtype}")
