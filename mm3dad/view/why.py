"""`Why`: a place explained in words and pictures, with the normal patches it was compared with beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm3dad.errors import Mm3dadError
from mm3dad.view.cloud import splat
from mm3dad.view.colors import MISSING, TRUTH, Array, Picture, outline_mask, to_picture
from mm3dad.view.scene import as_colors
from mm3dad.view.surface import height_picture, height_table, heights_above_plane, shade_surface

if TYPE_CHECKING:
    from mm3dad.methods.explanation import Explanation, Reason
    from mm3dad.types import Sample

TILE = 132  # pixels a side
SHOWN = 2  # normal patches of each modality
HERE = "this place"
LABELS = {"rgb": "RGB", "xyz": "3D"}
ReadNormal = Callable[[str], "Sample"]
Place = tuple["Sample", tuple[int, int], str, str, NDArray[np.bool_] | None]
Relief = tuple[Array, Array]


@dataclass(frozen=True)
class Tile:
    """Pictures of one place of one sample: image and cloud, what there is of them."""

    caption: str
    note: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Why:
    """An explained place.

    Args:
        row, column: in pixels.
        group: number of the point group, None without one.
        reach: pixels from here within which the explanation still holds.
        facts: name and value, for people.
        tiles: the place itself first, then the normal patches, nearest first within each modality.
    """

    row: int
    column: int
    group: int | None
    reach: int
    facts: tuple[tuple[str, str], ...]
    tiles: tuple[Tile, ...]


def explain_place(explanation: Explanation, row: int, column: int, read_normal: ReadNormal) -> Why:
    """Put an explanation into words and pictures.

    Args:
        explanation: of the sample.
        row, column: the place, in pixels.
        read_normal: returns a normal sample by its id; where it raises, the tile says why there is no picture.

    Raises:
        DataError: the place is outside the sample.
    """
    sample, reasons = explanation.sample, explanation.at(row, column)
    reach = max(1, round(max(sample.size) / 56))
    side = _crop_side(reasons, sample.size)
    # the group where the points speak, else the image patch
    shown = reasons.get("xyz") or reasons.get("rgb")
    area = None if shown is None else _fill(shown.members.numpy(), sample.size)
    places: list[Place] = [(sample, (row, column), HERE, "", area)]
    tiles: list[Tile | None] = [None]
    for name, reason in reasons.items():
        for match in reason.matches[:SHOWN]:
            caption = f"{LABELS[name]}: {match.id}"
            note = f"distance {match.distance:.3g}, its own {match.held:.3g}"
            try:
                normal = read_normal(match.id)
            except Mm3dadError as error:
                tiles.append(Tile(caption, f"{note}; {error}"))
                continue
            tiles.append(None)
            if match.place is None:
                places.append((normal, (0, 0), caption, note, None))
                continue
            down, right = (min(n - 1, int(share * n)) for share, n in zip(match.place, normal.size, strict=True))
            places.append((normal, (down, right), caption, note, None))
    drawn = iter(_draw(places, side))
    group = reasons["xyz"].patch if "xyz" in reasons else None
    return Why(row, column, group, reach, _facts(reasons), tuple(tile or next(drawn) for tile in tiles))


def _fill(members: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the area (H, W) of a patch's pixels; those of a group lie apart, on the sub-grid that its cloud was thinned to."""
    rows, columns = np.divmod(members, size[1])
    area = np.zeros(size, bool)
    gap = np.sqrt((np.ptp(rows) + 1) * (np.ptp(columns) + 1) / len(members))
    half = int(np.ceil(gap / 2)) if gap > 1.2 else 0
    for down in range(-half, half + 1):
        for right in range(-half, half + 1):
            area[np.clip(rows + down, 0, size[0] - 1), np.clip(columns + right, 0, size[1] - 1)] = True
    return area


def _facts(reasons: dict[str, Reason]) -> tuple[tuple[str, str], ...]:
    facts = []
    for name, reason in reasons.items():
        label = LABELS[name]
        kind = "group" if name == "xyz" else "patch"
        facts.append((f"{label} {kind}", f"{reason.patch}, {len(reason.members)} {'points' if name == 'xyz' else 'pixels'}"))
        enhanced = f" → {reason.after:.3g} enhanced" if reason.before != reason.after else ""
        facts.append((f"{label} score", f"{reason.before:.3g}{enhanced}"))
        facts.append((f"{label} neighbours", ", ".join(f"{score:.2g}" for score in reason.neighbor_scores)))
    return tuple(facts)


def _crop_side(reasons: dict[str, Reason], size: tuple[int, int]) -> int:
    """Side of the square to cut out: what the group covers and some surroundings."""
    side = max(size) * 0.16
    if "xyz" in reasons and size[0] > 1:
        rows, columns = np.divmod(reasons["xyz"].members.numpy(), size[1])
        side = max(side, 1.4 * float(max(np.ptp(rows), np.ptp(columns))))
    return max(3, round(min(side, min(size) if size[0] > 1 else max(size))))


def _draw(places: list[Place], side: int) -> list[Tile]:
    """Draw all places at one size and their heights on one scale, so that they can be compared."""
    crops = [(_cut(sample, place, side, members), caption, note) for sample, place, caption, note, members in places]
    reliefs = [relief for (_, relief, _), _, _ in crops if relief is not None]
    known = np.concatenate([np.abs(heights[np.isfinite(heights)]) for heights, _ in reliefs] or [np.zeros(0, np.float32)])
    reach = float(np.quantile(known, 0.99)) if known.size else 0.0
    tiles = []
    for (rgb, relief, outline), caption, note in crops:
        pictures = []
        if rgb is not None:
            pictures.append(_frame(rgb, outline))
        if relief is not None:
            heights, light = relief
            unit = np.clip(0.5 + np.nan_to_num(heights) / max(2 * reach, 1e-9), 0, 1)
            shaded = height_table()[(unit * 255).round().astype(np.uint8)] * (0.35 + 0.9 * light[..., None])
            picture = np.clip(shaded, 0, 255).astype(np.uint8)
            picture[~np.isfinite(heights)] = MISSING
            pictures.append(_frame(picture, outline))
        tiles.append(Tile(caption, note, tuple(pictures)))
    for index, (sample, place, caption, note, _) in enumerate(places):
        if sample.size[0] == 1 and sample.xyz is not None:  # no grid: the whole cloud, with the place marked
            tiles[index] = Tile(caption, note, (_draw_cloud(sample, place if caption == HERE else None),))
    return tiles


def _cut(
    sample: Sample, place: tuple[int, int], side: int, members: NDArray[np.bool_] | None
) -> tuple[Picture | None, Relief | None, NDArray[np.bool_] | None]:
    height, width = sample.size
    if height == 1:
        return None, None, None
    side = min(side, height, width)
    top, left = (min(max(0, at - side // 2), n - side) for at, n in zip(place, (height, width), strict=True))
    area = np.s_[..., top : top + side, left : left + side]
    rgb = None if sample.rgb is None else to_picture(sample.rgb.numpy()[area])
    relief = None
    if sample.xyz is not None and sample.valid is not None:
        xyz, valid = sample.xyz.numpy()[area], sample.valid.numpy()[area]
        relief = heights_above_plane(xyz, valid), shade_surface(xyz, valid, relief=2.0)
    if members is None:
        members = np.zeros((height, width), bool)
        half = max(1, side // 10)
        members[max(0, place[0] - half) : place[0] + half + 1, max(0, place[1] - half) : place[1] + half + 1] = True
    return rgb, relief, members[area]


def _frame(picture: Picture, outline: NDArray[np.bool_] | None) -> Picture:
    """Enlarge a crop and draw the outline of the patch or group."""
    from PIL import Image

    large = np.asarray(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BICUBIC))
    if outline is None or not outline.any():
        return large
    rows, columns = (((np.arange(TILE) + 0.5) * n / TILE).astype(np.int64) for n in outline.shape)
    return outline_mask(large, outline[np.ix_(rows, columns)], TRUTH, 1)


def _draw_cloud(sample: Sample, place: tuple[int, int] | None) -> Picture:
    assert sample.xyz is not None and sample.valid is not None
    xyz, valid = sample.xyz.numpy(), sample.valid.numpy()
    picture = to_picture(sample.rgb.numpy()) if sample.rgb is not None else height_picture(xyz, valid)
    if place is not None:
        gap = np.linalg.norm(xyz - xyz[:, place[0], place[1]][:, None, None], axis=0)
        picture[gap <= np.quantile(gap[valid], min(1.0, 128 / max(1, int(valid.sum()))))] = TRUTH
    return splat(xyz, valid, as_colors(picture), (TILE, TILE))
