"""Defects of image and depth that fit each other (DAS3D): one ternary mask shapes the depth and, grown or shrunk, colours the image.

Known from the abstract and reviews of "DAS3D: Dual-modality Anomaly Synthesis for 3D Anomaly Detection" (ECCV Workshops 2024, arXiv
2410.09821): the ternary mask, a skew-Gaussian transition, the shared place, the dropping of one modality. All numbers are ours
(trained sheet, 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.synthesis.blend import alter_image, blend_texture, draw_texture
from mm3dad.synthesis.masks import check_mask, grow_mask, measure_depth, ternary_mask, uniform

NORMAL, SINGLE = 0.3, 1 / 3  # of a training's draws are normal; of the others, alter the image alone, the depth alone, and both
FAINT, STRONG = 0.02, 0.2  # change of depth as a share of its range: as many of 0.02 to 0.04 as of 0.1 to 0.2
VISIBLE = 0.02, 0.005  # least change of colour and of depth that counts: who is asked for more learns to guess
THRESHOLDS, OCTAVES = (0.3, 0.6), 5  # of the noise whose regions are defects
EDGE = 1 / 16  # of a picture's side, by which a defect may run over the edge of the part


class Dual(NamedTuple):
    """A pair with a defect: rgb (3, H, W), depth (H, W), mask (H, W) bool of all pixels that either was altered at."""

    rgb: Tensor
    depth: Tensor
    mask: Tensor


def skew_profile(signs: Tensor, spread: float, skew: float) -> Tensor:
    """Shape each region of a ternary mask: 0 towards its border, then along a skewed Gaussian of the relative depth u inside it.

    g(u) = exp(-(u - 1)^2 / 2 spread^2) * (1 + erf(skew (u - 1) / sqrt 2)), less g(0), over its largest value in the picture: a
    bowl for skew 0, steep in the middle for a positive, with a plateau or a rim for a negative skew.

    Args:
        signs: (H, W) integers, 0 outside.
        spread: above 0, in units of the region's depth.
        skew: any.
    Returns:
        (H, W) float32 in [0, 1], 0 where `signs` is 0.
    Raises:
        ConfigError: spread is not above 0.
    """
    if not spread > 0:
        raise ConfigError(f"spread must be above 0, got {spread}; DAS3D here draws it from 0.2 to 0.8")

    def bell(u: Tensor) -> Tensor:
        return torch.exp(-((u - 1) ** 2) / (2 * spread**2)) * (1 + torch.erf(skew * (u - 1) / math.sqrt(2)))

    depth = torch.maximum(measure_depth(signs > 0), measure_depth(signs < 0))
    shape = torch.where(signs != 0, bell(depth) - bell(torch.zeros(())), 0.0).clamp_min(0)
    return shape / shape.max().clamp_min(1e-12)


def draw_dropout(generator: torch.Generator, normal: float = 0.5, single: float = 0.2) -> tuple[bool, bool]:
    """Draw which modalities get the defect: (image, depth).

    Args:
        generator: of the draw.
        normal: chance that neither does, so that a normal sample is trained on.
        single: chance, otherwise, of the image alone, and again of the depth alone: then the two do not agree, and a discriminator
            learns to trust either.
    Raises:
        ConfigError: chances outside [0, 1], or `single` above one half.
    """
    if not 0 <= normal <= 1 or not 0 <= single <= 0.5:
        raise ConfigError(f"normal must lie in [0, 1] and single in [0, 0.5], got {normal} and {single}")
    if uniform(generator, 0, 1) < normal:
        return False, False
    place = uniform(generator, 0, 1)
    return place >= single, not single <= place < 2 * single


def alter_pair(
    rgb: Tensor,
    depth: Tensor,
    within: Tensor,
    texture: Tensor,
    generator: torch.Generator,
    use: tuple[bool, bool] = (True, True),
    amplitude: tuple[float, float] = (0.02, 0.2),
    signs: Tensor | None = None,
) -> Dual:
    """Give image and depth of one view a defect at one place.

    Args:
        rgb: (3, H, W) float32 in [0, 1].
        depth: (H, W) float32, larger is farther from the sensor; any unit.
        within: (H, W) bool, the part.
        texture: (3, H, W) float32 in [0, 1], blended into the image.
        generator: of all draws.
        use: whether the image is altered, and the depth.
        amplitude: lowest and highest change of depth, in its unit.
        signs: (H, W) integers, a ternary mask, which may run over the edge of the part; None draws one inside.
    Returns:
        the pair; `mask` is empty when neither is altered, or `signs` misses the part. Depth grows where the ternary mask is +1 (a
        hollow) and falls where it is -1.
    Raises:
        ShapeError: sizes differ.
        DataError: the part is empty.
    """
    check_mask("within", within, filled=True)
    if rgb.shape[1:] != within.shape or depth.shape != within.shape:
        raise ShapeError(
            f"rgb (3, H, W), depth and within (H, W) must have one size, got {tuple(rgb.shape)}, {tuple(depth.shape)} and "
            f"{tuple(within.shape)}; resize them together"
        )
    signs = ternary_mask(within, generator) if signs is None else signs
    profile = skew_profile(signs, uniform(generator, 0.2, 0.8), uniform(generator, -4.0, 4.0)) * within
    change = uniform(generator, *amplitude) * signs * profile
    pixels = int(torch.randint(-3, 4, (), generator=generator))
    opacity = uniform(generator, 0.2, 1.0)
    mask = torch.zeros_like(within)
    if use[1]:
        depth = depth + change
        mask = mask | (change != 0)
    if use[0]:
        spot = grow_mask(signs != 0, pixels) & within
        spot = spot if bool(spot.any()) else (signs != 0) & within
        rgb = blend_texture(rgb, texture, spot, opacity)
        mask = mask | spot
    return Dual(rgb, depth, mask)


def draw_pair(rgb: Tensor, depth: Tensor, part: Tensor, pool: Sequence[Tensor], generator: torch.Generator) -> Dual:
    """Draw what a detector is trained on: the pair as it is, or with a defect in either or both, as many faint ones as strong.

    Args:
        rgb: (3, H, W) float32 in [0, 1].
        depth: (H, W) float32 in [0, 1], larger is farther from the sensor.
        part: (H, W) bool; an empty one is the whole picture.
        pool: images (3, H, W) of normal samples; half of the textures are made of one of them.
        generator: of all draws.
    Returns:
        the pair, and a mask of what can be seen to be altered.
    """
    use = draw_dropout(generator, NORMAL, SINGLE)
    if not any(use):
        return Dual(rgb, depth, torch.zeros_like(part))
    size = (part.shape[0], part.shape[1])
    if uniform(generator, 0, 1) < 0.5:
        texture = draw_texture(size, generator)
    else:
        texture = alter_image(pool[int(torch.randint(len(pool), (), generator=generator))].flip(-1), generator)
    within = part if bool(part.any()) else torch.ones_like(part)
    # Regions that only the edge of the part cut off, so that bent and broken edges are among them.
    signs = ternary_mask(grow_mask(within, round(EDGE * min(size))), generator, *THRESHOLDS, OCTAVES)
    change = FAINT * (STRONG / FAINT) ** uniform(generator, 0, 1)
    pair = alter_pair(rgb, depth, within, texture, generator, use, (change, change), signs)
    moved = pair.depth.clamp(0, 1)
    return Dual(pair.rgb, moved, ((pair.rgb - rgb).abs().amax(0) > VISIBLE[0]) | ((moved - depth).abs() > VISIBLE[1]))
