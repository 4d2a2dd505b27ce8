"""Defects of colour: foreign texture blended into a region, pieces of another picture pasted elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mm3dad.errors import ShapeError
from mm3dad.synthesis.masks import Size, check_mask, draw_noise, label_components, perlin_noise, uniform


class Placement(NamedTuple):
    """Where pasted pixels go: flat pixels (n,) int64 of the target, each once, and of the source they come from."""

    target: Tensor
    source: Tensor

    def to_mask(self, size: Size) -> Tensor:
        """Return the target pixels as a mask (H, W) bool."""
        mask = torch.zeros(size[0] * size[1], dtype=torch.bool)
        mask[self.target] = True
        return mask.view(size)


def blend_texture(rgb: Tensor, texture: Tensor, mask: Tensor, opacity: float) -> Tensor:
    """Blend a texture into a region: rgb outside, opacity * texture + (1 - opacity) * rgb inside (DRAEM, whose b is 1 - opacity).

    Args:
        rgb, texture: (3, H, W) float32 in [0, 1].
        mask: (H, W) bool.
        opacity: in [0, 1].
    Raises:
        ShapeError: sizes differ, or the mask is none.
    """
    check_mask("mask", mask)
    if rgb.shape != texture.shape or rgb.shape[1:] != mask.shape:
        raise ShapeError(
            f"rgb and texture must be (3, H, W) with mask (H, W), got {tuple(rgb.shape)}, {tuple(texture.shape)} and {tuple(mask.shape)}; "
            "resize the texture"
        )
    return torch.where(mask, torch.lerp(rgb, texture, opacity).clamp(0, 1), rgb)


def draw_texture(size: Size, generator: torch.Generator) -> Tensor:
    """Draw a texture that no part has: two colours mixed by Perlin noise, with grain; stands in for the photographs DRAEM takes from DTD.

    Returns:
        (3, H, W) float32 in [0, 1].
    """
    one, other = torch.rand(2, 3, 1, 1, generator=generator)
    mix = (0.5 + uniform(generator, 0.5, 3.0) * draw_noise(size, generator)).clamp(0, 1)
    grain = uniform(generator, 0.0, 0.15) * perlin_noise(size, (64, 64), generator)
    return (torch.lerp(one, other, mix) + grain).clamp(0, 1)


def alter_image(rgb: Tensor, generator: torch.Generator, count: int = 3) -> Tensor:
    """Apply `count` of eight changes to a picture, so that a piece of it looks foreign (after DRAEM and G2SF).

    Args:
        rgb: (3, H, W) float32 in [0, 1].
        generator: of the choice and of each change's strength.
        count: 0 to 8, in random order, none twice.
    Returns:
        (3, H, W) float32 in [0, 1].
    """
    for pick in torch.randperm(8, generator=generator)[:count].tolist():
        strength = uniform(generator, 0.0, 1.0)
        if pick == 0:
            rgb = rgb ** (4.0 ** (strength - 0.5))
        elif pick == 1:
            rgb = rgb * (0.7 + 0.6 * strength) + 0.2 * (strength - 0.5)
        elif pick == 2:
            rgb = torch.where(rgb > 0.3 + 0.6 * strength, 1 - rgb, rgb)
        elif pick == 3:
            levels = 2 + round(6 * strength)
            rgb = (rgb * levels).floor() / levels
        elif pick == 4:
            rgb = 1 - rgb
        elif pick == 5:
            low, high = rgb.amin((1, 2), keepdim=True), rgb.amax((1, 2), keepdim=True)
            rgb = (rgb - low) / (high - low).clamp_min(1e-3)
        elif pick == 6:
            rgb = rgb[torch.randperm(3, generator=generator)]
        else:
            blurred = functional.avg_pool2d(rgb[None], 3, stride=1, padding=1, count_include_pad=False)[0]
            rgb = rgb + 3 * strength * (rgb - blurred)
        rgb = rgb.clamp(0, 1)
    return rgb


def place_components(region: Tensor, onto: Tensor, generator: torch.Generator) -> Placement:
    """Find room on a part for each connected region cut from a source of the same size (G2SF).

    A region of which more than two thirds lies on the part stays where it is; else its middle moves to a random pixel of the part. What
    leaves the picture or the part is dropped; where two regions meet, the later one is on top.

    Args:
        region: (H, W) bool, what is cut out of the source.
        onto: (H, W) bool, the part in the target.
    Raises:
        ShapeError: no masks, or of different sizes.
        DataError: there is no part.
    """
    check_mask("region", region)
    check_mask("onto", onto, filled=True)
    if region.shape != onto.shape:
        raise ShapeError(f"region and onto must have one size, got {tuple(region.shape)} and {tuple(onto.shape)}; resize the source")
    height, width = onto.shape
    free = onto.nonzero()
    origin = torch.full((height * width,), -1, dtype=torch.int64)
    numbers, count = label_components(region)
    for number in range(1, count + 1):
        place = (numbers == number).nonzero()
        goal = place
        if float(onto[place[:, 0], place[:, 1]].float().mean()) <= 2 / 3:
            middle = free[int(torch.randint(len(free), (), generator=generator))]
            goal = place + middle - place.double().mean(0).round().long()
        inside = (goal >= 0).all(1) & (goal[:, 0] < height) & (goal[:, 1] < width)
        place, goal = place[inside], goal[inside]
        kept = onto[goal[:, 0], goal[:, 1]]
        origin[goal[kept, 0] * width + goal[kept, 1]] = place[kept, 0] * width + place[kept, 1]
    target = (origin >= 0).nonzero()[:, 0]
    return Placement(target, origin[target])


def paste_colour(rgb: Tensor, source: Tensor, placement: Placement, opacity: float) -> Tensor:
    """Paste pixels of `source` (3, H, W) onto `rgb` (3, H, W): opacity * source + (1 - opacity) * rgb (G2SF: opacity 0.5 to 1)."""
    pasted = rgb.flatten(1).clone()
    pasted[:, placement.target] = torch.lerp(pasted[:, placement.target], source.flatten(1)[:, placement.source], opacity)
    return pasted.view_as(rgb)
