"""Defects for training and for looking at: random masks, colour, surface, depth, both in register."""

from __future__ import annotations

from mm3dad.synthesis.blend import Placement, alter_image, blend_texture, draw_texture, paste_colour, place_components
from mm3dad.synthesis.depth import keep_valid, move_along_rays, paste_depth
from mm3dad.synthesis.dual import Dual, alter_pair, draw_dropout, draw_pair, skew_profile
from mm3dad.synthesis.masks import grow_mask, keep_components, perlin_mask, perlin_noise, ternary_mask
from mm3dad.synthesis.part import find_part
from mm3dad.synthesis.surface import bulge_points, find_region, measure_normal, published_height, stretch_points
from mm3dad.synthesis.synthesizers import Synthesizer

__all__ = [
    "Dual",
    "Placement",
    "Synthesizer",
    "alter_image",
    "alter_pair",
    "blend_texture",
    "bulge_points",
    "draw_dropout",
    "draw_pair",
    "draw_texture",
    "find_part",
    "find_region",
    "grow_mask",
    "keep_components",
    "keep_valid",
    "measure_normal",
    "move_along_rays",
    "paste_colour",
    "paste_depth",
    "perlin_mask",
    "perlin_noise",
    "place_components",
    "published_height",
    "skew_profile",
    "stretch_points",
    "ternary_mask",
]
