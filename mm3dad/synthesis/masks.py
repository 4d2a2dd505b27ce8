"""Random regions: Perlin noise and the masks made of it, in two and in three values."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ShapeError

Size = tuple[int, int]
FINEST = 4  # pixels of a cell at least
TRIES = 200  # draws until a mask hits the part; the threshold falls by a tenth with each


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Draw one number of [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def perlin_noise(size: Size, cells: tuple[int, int], generator: torch.Generator, angle: float = 0.0) -> Tensor:
    """Draw Perlin's gradient noise: smooth, of mean about 0, within about [-1, 1].

    The lattice is turned instead of the finished picture, so that a turn leaves no empty corners.
    Source: Perlin, An Image Synthesizer, SIGGRAPH 1985; scaled by sqrt 2 as in DRAEM (ICCV 2021).

    Args:
        size: (H, W) pixels.
        cells: lattice cells down and across; more cells, finer noise.
        generator: of the gradients.
        angle: turn of the lattice about the middle, radians.
    Returns:
        (H, W) float32.
    Raises:
        ConfigError: a size or number of cells below 1.
    """
    if min(size) < 1 or min(cells) < 1:
        raise ConfigError(f"size and cells must be at least 1, got {tuple(size)} and {tuple(cells)}")
    row, column = ((torch.arange(n) + 0.5) / n - 0.5 for n in size)
    # Half a diagonal lies within 0.71 of the middle, whatever the turn.
    side = [math.ceil(1.5 * n) + 2 for n in cells]
    y = (math.cos(angle) * row[:, None] + math.sin(angle) * column) * cells[0] + side[0] / 2
    x = (math.cos(angle) * column - math.sin(angle) * row[:, None]) * cells[1] + side[1] / 2
    turn = 2 * math.pi * torch.rand(side[0] + 1, side[1] + 1, generator=generator)
    gradient = torch.stack([turn.sin(), turn.cos()])
    top, left = y.floor().long(), x.floor().long()
    fy, fx = y - top, x - left

    def corner(down: int, right: int) -> Tensor:
        slope = gradient[:, top + down, left + right]
        return slope[0] * (fy - down) + slope[1] * (fx - right)

    wy, wx = (part**3 * (part * (part * 6 - 15) + 10) for part in (fy, fx))
    above, below = (torch.lerp(corner(down, 0), corner(down, 1), wx) for down in (0, 1))
    return math.sqrt(2) * torch.lerp(above, below, wy)


def draw_noise(size: Size, generator: torch.Generator, octaves: int = 6) -> Tensor:
    """Draw Perlin noise of random fineness and of a random turn within a right angle (DRAEM).

    Each axis has 2^U{0 .. octaves - 1} cells, none of less than four pixels, below which noise is no region any more.
    """
    octaves = min(octaves, max(1, int(math.log2(max(1, min(size) / FINEST))) + 1))
    down, right = (2 ** int(power) for power in torch.randint(0, octaves, (2,), generator=generator))
    return perlin_noise(size, (down, right), generator, uniform(generator, -math.pi / 2, math.pi / 2))


def perlin_mask(within: Tensor, generator: torch.Generator, threshold: float = 0.5, octaves: int = 6) -> Tensor:
    """Draw a random region of a part: where Perlin noise exceeds a threshold (DRAEM 0.5; G2SF 0.4).

    Args:
        within: (H, W) bool, the part.
        generator: of the draw; drawn again, with a threshold a tenth lower, while the region misses the part.
        threshold: the higher, the smaller the region.
        octaves: as `draw_noise`.
    Returns:
        (H, W) bool, never empty, inside `within`.
    Raises:
        ShapeError: `within` is not such a mask.
        DataError: the part is empty.
    """
    check_mask("within", within, filled=True)
    for _ in range(TRIES):
        region = (draw_noise(_size(within), generator, octaves) > threshold) & within
        if bool(region.any()):
            return region
        threshold *= 0.9
    raise DataError(f"no random region met the part of {int(within.sum())} pixels in {TRIES} draws; check its mask")


def ternary_mask(within: Tensor, generator: torch.Generator, low: float = 0.4, high: float = 0.8, octaves: int = 6) -> Tensor:
    """Draw regions of two signs: +1 where Perlin noise exceeds t, -1 where it lies below -t, else 0 (DAS3D).

    Args:
        within: (H, W) bool, the part.
        generator: of the draw; drawn again while no region meets the part.
        low, high: t is uniform between them, and falls by a tenth with each draw that misses.
        octaves: as `draw_noise`.
    Returns:
        (H, W) int8 in {-1, 0, 1}, not all 0, 0 outside `within`.
    Raises:
        ShapeError: `within` is not such a mask.
        DataError: the part is empty.
    """
    check_mask("within", within, filled=True)
    threshold = uniform(generator, low, high)
    for _ in range(TRIES):
        noise = draw_noise(_size(within), generator, octaves)
        signs = ((noise > threshold).to(torch.int8) - (noise < -threshold).to(torch.int8)) * within
        if bool(signs.any()):
            return signs
        threshold *= 0.9
    raise DataError(f"no random region met the part of {int(within.sum())} pixels in {TRIES} draws; check its mask")


def label_components(mask: Tensor) -> tuple[Tensor, int]:
    """Number the connected regions (8 neighbours) of a mask (H, W) bool: (H, W) int64, 0 outside, 1 .. count inside; and count."""
    from scipy.ndimage import label

    numbers, count = label(mask.numpy(), structure=np.ones((3, 3)))
    return torch.from_numpy(numbers.astype(np.int64)), int(count)


def keep_components(mask: Tensor, least: int, most: int) -> Tensor:
    """Keep the connected regions of `least` to `most` pixels (G2SF: 100 to 1600) of a mask (H, W) bool."""
    numbers, count = label_components(mask)
    area = torch.bincount(numbers.flatten(), minlength=count + 1)
    kept = (area >= least) & (area <= most)
    kept[0] = False
    return kept[numbers]


def measure_depth(mask: Tensor) -> Tensor:
    """Say how deep each pixel lies in its connected region: (H, W) float32, 1 at the deepest place of each, 0 outside.

    Args:
        mask: (H, W) bool.
    """
    from scipy.ndimage import distance_transform_edt

    numbers, count = label_components(mask)
    # What lies beyond the picture is outside too.
    distance = torch.from_numpy(distance_transform_edt(np.pad(mask.numpy(), 1))[1:-1, 1:-1].astype(np.float32))
    deepest = torch.ones(count + 1).scatter_reduce(0, numbers.flatten(), distance.flatten(), "amax", include_self=False)
    return torch.where(mask, distance / deepest[numbers].clamp_min(1e-6), 0.0)


def grow_mask(mask: Tensor, pixels: int) -> Tensor:
    """Dilate (pixels > 0) or erode (pixels < 0) a mask (H, W) bool by squares; what lies beyond the picture changes nothing."""
    if pixels == 0:
        return mask.clone()
    side = 2 * abs(pixels) + 1
    values = (mask if pixels > 0 else ~mask).float()[None, None]
    grown = torch.nn.functional.max_pool2d(values, side, stride=1, padding=abs(pixels))[0, 0] > 0
    return grown if pixels > 0 else ~grown


def check_mask(name: str, mask: Tensor, filled: bool = False) -> None:
    """Demand a mask (H, W) bool, with something in it where `filled`.

    Raises:
        ShapeError: another type, dtype or rank.
        DataError: nothing in it.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.dtype != torch.bool:
        got = f"{tuple(mask.shape)} {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ShapeError(f"{name} must be (H, W) bool, got {got}; threshold it first")
    if filled and not bool(mask.any()):
        raise DataError(f"{name} must hold at least one pixel of the part, got none of {mask.numel()}; check the valid points")


def _size(mask: Tensor) -> Size:
    return int(mask.shape[0]), int(mask.shape[1])
