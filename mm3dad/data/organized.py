"""Geometry of organised clouds: depth to xyz, resizing, padding, the way from pixels to points and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mm3dad.errors import ConfigError, DataError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mm3dad.types import Sample

MAX_EXTENT = 10.0  # metres: larger than any part on a bench, smaller than a part of 1 cm given in millimetres


def _shape(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def from_depth(depth: Tensor, intrinsics: Sequence[float], unit: float) -> Tensor:
    """Back-project a depth image (z along the optical axis) with a pinhole camera.

    Args:
        depth: (H, W), any numeric dtype; zero, negative, NaN and Inf mean "not measured".
        intrinsics: (fx, fy, cx, cy) in pixels; pixel (0, 0) has its centre at coordinate 0.
        unit: metres per count, e.g. 0.001 for millimetres.

    Returns:
        (3, H, W) float32 metres, zeros where nothing was measured.

    Raises:
        ShapeError: depth is not (H, W).
        ConfigError: a focal length or the unit is not positive.
    """
    import torch

    if depth.ndim != 2:
        raise ShapeError(f"depth must be (H, W), got {_shape(depth)}; pass one channel of z")
    if len(intrinsics) != 4 or not all(math.isfinite(float(value)) for value in intrinsics) or min(intrinsics[:2]) <= 0:
        raise ConfigError(
            f"intrinsics must be (fx, fy, cx, cy) in pixels with positive focal lengths, got {tuple(intrinsics)}; see the camera's data"
        )
    if not 0 < unit < float("inf"):
        raise ConfigError(f"unit must be positive metres per count, got {unit}; use 0.001 for millimetres")
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    z = depth.double() * unit
    z = z.where(z.isfinite() & (z > 0), 0.0)
    u = torch.arange(depth.shape[1], dtype=torch.float64, device=depth.device)
    v = torch.arange(depth.shape[0], dtype=torch.float64, device=depth.device)[:, None]
    return torch.stack(((u - cx) / fx * z, (v - cy) / fy * z, z)).float()


def extent(xyz: Tensor) -> float:
    """Return the longest side, in metres, of the box around the measured points of xyz (3, H, W); 0 without points."""
    measured = xyz.isfinite().all(0) & (xyz != 0).any(0)
    if not bool(measured.any()):
        return 0.0
    inside = xyz[:, measured]
    return float((inside.amax(1) - inside.amin(1)).max())


def check_extent(xyz: Tensor, name: str) -> None:
    """Refuse a cloud wider than 10 m: it is in another unit than metres.

    Raises:
        DataError: names the file and the cure.
    """
    if (got := extent(xyz)) > MAX_EXTENT:
        raise DataError(
            f"{name} spans {got:g} m, expected at most {MAX_EXTENT:g} m; "
            "if it is in millimetres, multiply it by 0.001 (folder data: unit=0.001)"
        )


def source_index(length: int, wanted: int, device: torch.device | str = "cpu") -> Tensor:
    """Return (wanted,) int64: the source pixel of each target pixel, floor(target * length / wanted)."""
    import torch

    return torch.arange(wanted, device=device) * length // wanted


def _nearest(array: Tensor, size: Sequence[int]) -> Tensor:
    height, width = size
    if min(height, width) < 1 or 0 in array.shape[-2:]:
        raise ShapeError(f"cannot resize {_shape(array)} to {tuple(size)}; both sizes must be at least 1")
    rows = source_index(array.shape[-2], height, array.device)
    return array[..., rows[:, None], source_index(array.shape[-1], width, array.device)]


def resize_xyz(xyz: Tensor, size: Sequence[int], valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Resize an organised cloud by picking pixels; interpolating would melt holes at (0, 0, 0) into points.

    Args:
        xyz: (3, H, W) float32 metres.
        size: (h, w) wanted.
        valid: (H, W) bool; derived from xyz when None.

    Returns:
        xyz (3, h, w) and valid (h, w); source index floor(target * in / out), as torch's "nearest".

    Raises:
        ShapeError: xyz is not (3, H, W), or a size is below 1.
    """
    if xyz.ndim != 3 or xyz.shape[0] != 3:
        raise ShapeError(f"xyz must be (3, H, W), got {_shape(xyz)}; use permute(2, 0, 1) on (H, W, 3)")
    if valid is None:
        valid = xyz.isfinite().all(0) & (xyz != 0).any(0)
    return _nearest(xyz, size), _nearest(valid, size)


def resize_rgb(rgb: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (3, H, W) float32 in [0, 1] to (3, h, w), bicubic with antialiasing, clamped back to [0, 1]."""
    if rgb.ndim != 3 or rgb.shape[0] != 3 or min(size) < 1:
        raise ShapeError(
            f"rgb must be (3, H, W) and the size at least 1, got {_shape(rgb)} and {tuple(size)}; use permute(2, 0, 1) on (H, W, 3)"
        )
    if tuple(rgb.shape[1:]) == tuple(size):
        return rgb
    from torch.nn import functional

    return functional.interpolate(rgb[None], tuple(size), mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (H, W) bool to (h, w) by nearest, with the same source pixels as `resize_xyz`."""
    if mask.ndim != 2:
        raise ShapeError(f"mask must be (H, W), got {_shape(mask)}; pass one channel")
    return _nearest(mask, size)


def resize(sample: Sample, size: Sequence[int]) -> Sample:
    """Resize all that a sample holds to (h, w): rgb bicubic, xyz and mask nearest.

    Raises:
        DataError: the cloud has no grid.
    """
    if not sample.meta.organised:
        raise DataError(f"sample {sample.meta.id!r} is a cloud without a grid and cannot be resized; export an organised cloud")
    xyz, valid = (None, None) if sample.xyz is None else resize_xyz(sample.xyz, size, sample.valid)
    return replace(
        sample,
        rgb=None if sample.rgb is None else resize_rgb(sample.rgb, size),
        xyz=xyz,
        valid=valid,
        mask=None if sample.mask is None else resize_mask(sample.mask, size),
    )


def pad_square(array: Tensor, multiple: int = 1, value: float = 0.0) -> Tensor:
    """Pad (..., H, W) to a square whose side is the next multiple of `multiple`.

    floor(difference / 2) goes on top and left, the rest below and right (the published MVTec 3D-AD preprocessing).
    """
    height, width = array.shape[-2:]
    side = -(-max(height, width) // multiple) * multiple
    top, left = (side - height) // 2, (side - width) // 2
    padded = array.new_full((*array.shape[:-2], side, side), value)
    padded[..., top : top + height, left : left + width] = array
    return padded


def to_points(xyz: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the valid points (N, 3) of xyz (3, H, W) and their flat pixel index (N,) int64, in row order."""
    pixel = valid.reshape(-1).nonzero()[:, 0]
    return xyz.reshape(3, -1)[:, pixel].T.contiguous(), pixel


def to_grid(values: Tensor, pixel: Tensor, size: Sequence[int]) -> Tensor:
    """Scatter values (N,) or (N, C) of points back to their pixels: (H, W) or (C, H, W), zeros elsewhere."""
    height, width = size
    grid = values.new_zeros((height * width, *values.shape[1:]))
    grid[pixel] = values
    return grid.reshape(height, width) if values.ndim == 1 else grid.T.reshape(-1, height, width).contiguous()
