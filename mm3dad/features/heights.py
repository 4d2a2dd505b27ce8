"""A view of a part as small square pictures: colour, and height above the table, in register."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mm3dad.errors import DataError
from mm3dad.ops.table import fit_plane, fit_table
from mm3dad.types import Sample

Window = tuple[slice, slice]  # rows and columns of a picture

AROUND = 1.15  # side of the window of a part, as a share of the part's own
FLYING = 0.002  # share of a part's points beyond either end of its window
FRAGMENT = 0.75  # of the window a part should have; what fills less is a piece of a part
FLAT = 0.1  # least relief of a part, as a share of its width
PASSES = 16  # of filling holes from their edges


@dataclass(frozen=True)
class Relief:
    """The cloud of one sample on a square grid.

    Args:
        height: (side, side) float32, metres above the table, towards the sensor; holes are filled from their edges.
        part: (side, side) bool, where most of a cell is the part.
        relief: metres, the part's height; at least a tenth of its width, so that defects of a flat plate do not leave every scale.
    """

    height: Tensor
    part: Tensor
    relief: float


@dataclass(frozen=True)
class View(Relief):
    """The part of one sample on a square grid.

    Args:
        rgb: (3, side, side) float32 in [0, 1].
        height, part, relief: as `Relief`.
        window: of the sample's picture, which the square shows.
    """

    rgb: Tensor
    window: Window


def make_view(sample: Sample, part: Tensor, side: int, least: float = 0.0) -> View:
    """Bring the window around a part to a square: colour by areas, its cloud by `make_relief`.

    Where the part is only a fragment of what `least` says it should be, such as a bump on a plate that fills the picture, everything in
    the window is the part.

    Args:
        sample: with rgb and xyz on a grid.
        part: (H, W) bool, the part.
        side: of the square.
        least: as `find_window`.
    Raises:
        DataError: no valid point, or a cloud without a grid.
    """
    assert sample.rgb is not None
    window = find_window(part, least)
    if measure_window(find_window(part)) < FRAGMENT * measure_window(window):
        part = torch.ones_like(part)
    found = make_relief(sample, part, side, window)
    return View(found.height, found.part, found.relief, shrink_image(sample.rgb[:, *window], side), window)


def find_window(part: Tensor, least: float = 0.0) -> Window:
    """Find the square around a part with some room beside it, or as much of that as the picture has; all of it where there is no part.

    Args:
        part: (H, W) bool.
        least: side of the square at least, as a share of the longer side of the picture, lest a fragment is taken for the part.
    """
    size = part.shape
    if not bool(part.any()):
        return slice(0, size[0]), slice(0, size[1])
    spans = [_find_span(part.sum(1 - axis)) for axis in range(2)]
    width = max(math.ceil(AROUND * max(last - first for first, last in spans)), round(least * max(size)))
    starts = [min(max(0, (a + b - width) // 2), max(0, n - width)) for (a, b), n in zip(spans, size, strict=True)]
    rows, columns = (slice(start, min(n, start + width)) for start, n in zip(starts, size, strict=True))
    return rows, columns


def measure_window(window: Window) -> int:
    """Return the longer side of a window, in pixels."""
    return max(one.stop - one.start for one in window)


def _find_span(counts: Tensor) -> tuple[int, int]:
    """Return first and one past the last of the lines that hold the points, those at the very ends left out: single points fly."""
    share = counts.double().cumsum(0) / counts.sum()
    return int((share <= FLYING).sum()), int((share < 1 - FLYING).sum()) + 1


def shrink_image(rgb: Tensor, side: int) -> Tensor:
    """Bring an image (3, H, W) to a square (3, side, side) by areas; pixels repeat where the square is finer than the image."""
    return functional.adaptive_avg_pool2d(rgb, side).contiguous()


def balance_image(rgb: Tensor, part: Tensor) -> Tensor:
    """Bring the median of each colour on the part to one half: exposure and tint of the light differ from view to view.

    A part that has another colour all over looks like the others then.

    Args:
        rgb: (3, H, W) float32 in [0, 1].
        part: (H, W) bool; an empty one is the whole picture.
    Returns:
        (3, H, W) float32 in [0, 1]; no colour is raised more than tenfold.
    """
    on_part = rgb[:, part] if bool(part.any()) else rgb.flatten(1)
    gain = 0.5 / on_part.median(dim=1).values.clamp_min(0.05)
    return (rgb * gain[:, None, None]).clamp(0, 1)


def make_relief(sample: Sample, part: Tensor, side: int, window: Window | None = None) -> Relief:
    """Bring the cloud of a sample to a square: heights by the mean of a cell's valid points.

    Heights, not depths: the tilt of the table would take up most of a depth image's range.

    Args:
        sample: with xyz on a grid.
        part: (H, W) bool, the part.
        side: of the square.
        window: what the square shows; None is the whole picture.
    Raises:
        DataError: no valid point, or a cloud without a grid.
    """
    assert sample.xyz is not None and sample.valid is not None
    if not sample.meta.organised or sample.size[0] == 1:
        raise DataError(f"sample {sample.meta.id!r} is a cloud without a grid; this method needs an organised one, use duet or glfm")
    if not bool(sample.valid.any()):
        raise DataError(f"sample {sample.meta.id!r} has no valid point; check the sensor, the unit and the mask of missing points")
    table = fit_table(sample.xyz, sample.valid) or fit_plane(sample.xyz[:, sample.valid].T.double())
    height = torch.where(sample.valid, table.height(sample.xyz), 0.0).float()
    # Adaptive pooling repeats pixels where the square is finer than the sample.
    maps = torch.stack([height, sample.valid.float(), part.float()])
    pooled = functional.adaptive_avg_pool2d(maps if window is None else maps[:, *window], side)
    seen = pooled[1]
    seen_part = part & sample.valid
    relief = 0.0
    if bool(seen_part.any()):
        place = sample.xyz[:2, seen_part]
        # Quantiles, because single points fly at edges.
        low, high = height[seen_part].quantile(torch.tensor([0.005, 0.995])).tolist()
        relief = max(high - min(0.0, low), FLAT * float((place.amax(1) - place.amin(1)).max()))
    return Relief(fill_holes(pooled[0] / seen.clamp_min(1e-6), seen > 0), pooled[2] > 0.5, relief)


def fill_holes(values: Tensor, known: Tensor) -> Tensor:
    """Fill the unknown cells of a map (H, W) from their edges inwards, by means of known neighbours; what stays unknown is 0.

    Args:
        values: (H, W) floating.
        known: (H, W) bool.
    """
    held = torch.stack([values * known, known.to(values.dtype)])
    for _ in range(PASSES):
        if bool((held[1] > 0).all()):
            break
        total, weight = functional.avg_pool2d(held[None], 3, stride=1, padding=1)[0]
        filled = total / weight.clamp_min(1e-9)
        fresh = (held[1] == 0) & (weight > 0)
        held = torch.stack([torch.where(fresh, filled, held[0]), (held[1] + fresh).clamp_max(1)])
    return held[0]
