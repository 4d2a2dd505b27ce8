"""Crops of places of several samples, at one size and with heights on one scale, so that the eye can compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm3dad.view.cloud import splat
from mm3dad.view.colors import MISSING, TRUTH, Array, Picture, outline_mask, to_picture
from mm3dad.view.scene import as_colors
from mm3dad.view.surface import height_picture, height_table, heights_above_plane, shade_surface

if TYPE_CHECKING:
    from mm3dad.types import Sample

TILE = 132  # pixels a side
Relief = tuple[Array, Array]


@dataclass(frozen=True)
class Place:
    """A place to draw.

    Args:
        sample: where it is.
        pixel: row and column; None for somewhere in a cloud without a grid.
        area: (H, W) bool, what to outline; a small square around the pixel when None.
    """

    sample: Sample
    pixel: tuple[int, int] | None
    area: NDArray[np.bool_] | None = None


def draw_places(places: Sequence[Place], side: int) -> list[tuple[Picture, ...]]:
    """Return image and cloud of each place, what there is of them, as (TILE, TILE, 3) pictures.

    Heights stand over a plane through each crop and share one scale of colours. A cloud without a grid is drawn as a whole.

    Args:
        places: the first is the one that the others are compared with.
        side: of the square to cut out, in pixels.
    """
    crops = [_cut(place, side) for place in places]
    heights = [relief[0] for _, relief, _ in crops if relief is not None]
    known = np.concatenate([np.abs(one[np.isfinite(one)]) for one in heights] or [np.zeros(0, np.float32)])
    reach = max(2 * float(np.quantile(known, 0.99)), 1e-9) if known.size else 1.0
    drawn = []
    for place, (rgb, relief, outline) in zip(places, crops, strict=True):
        pictures = [] if rgb is None else [_frame(rgb, outline)]
        if relief is not None:
            pictures.append(_frame(_color_relief(*relief, reach), outline))
        if place.sample.size[0] == 1 and place.sample.xyz is not None:
            pictures = [_draw_cloud(place)]
        drawn.append(tuple(pictures))
    return drawn


def _cut(place: Place, side: int) -> tuple[Picture | None, Relief | None, NDArray[np.bool_] | None]:
    sample, pixel, members = place.sample, place.pixel, place.area
    height, width = sample.size
    if height == 1 or pixel is None:
        return None, None, None
    side = min(side, height, width)
    top, left = (min(max(0, at - side // 2), n - side) for at, n in zip(pixel, (height, width), strict=True))
    area = np.s_[..., top : top + side, left : left + side]
    rgb = None if sample.rgb is None else to_picture(sample.rgb.numpy()[area])
    relief = None
    if sample.xyz is not None and sample.valid is not None:
        xyz, valid = sample.xyz.numpy()[area], sample.valid.numpy()[area]
        relief = heights_above_plane(xyz, valid), shade_surface(xyz, valid, relief=2.0)
    if members is None:
        members = np.zeros((height, width), bool)
        half = max(1, side // 10)
        members[max(0, pixel[0] - half) : pixel[0] + half + 1, max(0, pixel[1] - half) : pixel[1] + half + 1] = True
    return rgb, relief, members[area]


def _color_relief(heights: Array, light: Array, reach: float) -> Picture:
    unit = np.clip(0.5 + np.nan_to_num(heights) / reach, 0, 1)
    shaded = height_table()[(unit * 255).round().astype(np.uint8)] * (0.35 + 0.9 * light[..., None])
    picture = np.clip(shaded, 0, 255).astype(np.uint8)
    picture[~np.isfinite(heights)] = MISSING
    return picture


def _frame(picture: Picture, outline: NDArray[np.bool_] | None) -> Picture:
    """Enlarge a crop and draw the outline of the patch or group."""
    from PIL import Image

    large = np.asarray(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BICUBIC))
    if outline is None or not outline.any():
        return large
    rows, columns = (((np.arange(TILE) + 0.5) * n / TILE).astype(np.int64) for n in outline.shape)
    return outline_mask(large, outline[np.ix_(rows, columns)], TRUTH, 1)


def _draw_cloud(place: Place) -> Picture:
    """Draw a cloud without a grid as a whole, the points nearest to the place marked."""
    sample = place.sample
    assert sample.xyz is not None and sample.valid is not None
    xyz, valid = sample.xyz.numpy(), sample.valid.numpy()
    picture = to_picture(sample.rgb.numpy()) if sample.rgb is not None else height_picture(xyz, valid)
    if place.pixel is not None and valid.any():
        gap = np.linalg.norm(xyz - xyz[:, place.pixel[0], place.pixel[1]][:, None, None], axis=0)
        picture[gap <= np.quantile(gap[valid], min(1.0, 128 / int(valid.sum())))] = TRUTH
    return splat(xyz, valid, as_colors(picture), (TILE, TILE))
