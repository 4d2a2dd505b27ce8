"""`Why`: a place explained in words and pictures, with the normal patches it was compared with beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm3dad.errors import Mm3dadError
from mm3dad.view.colors import PAGE, Picture
from mm3dad.view.crops import TILE, Place, draw_places

if TYPE_CHECKING:
    from mm3dad.methods.explanation import Explanation, Reason
    from mm3dad.types import Sample

SHOWN = 2  # normal patches of each modality
HERE = "this place"
LABELS = {"rgb": "RGB", "xyz": "3D"}
ReadNormal = Callable[[str], "Sample"]


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
        beside: numbers of the groups that lie beside it on the surface.
        reach: pixels from here within which the explanation still holds.
        facts: name and value, for people.
        tiles: the place itself first, then the normal patches, nearest first within each modality.
    """

    row: int
    column: int
    group: int | None
    beside: tuple[int, ...]
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
    # the group where the points speak, else the image patch
    shown = reasons.get("xyz") or reasons.get("rgb")
    area = None if shown is None else _fill(shown.members.numpy(), sample.size)
    places, texts, lost = [Place(sample, (row, column), area)], [(HERE, "")], []
    for name, reason in reasons.items():
        for match in reason.matches[:SHOWN]:
            caption, note = f"{LABELS[name]}: {match.id}", f"distance {match.distance:.3g}, its own {match.held:.3g}"
            try:
                normal = read_normal(match.id)
            except Mm3dadError as error:
                lost.append(Tile(caption, f"{note}; {error}"))
                continue
            pixel = None
            if match.place is not None:
                pixel = int(match.place[0] * normal.size[0]), int(match.place[1] * normal.size[1])
            places.append(Place(normal, pixel))
            texts.append((caption, note))
    pictures = draw_places(places, _choose_side(reasons, sample.size))
    tiles = [Tile(*text, drawn) for text, drawn in zip(texts, pictures, strict=True)]
    group = reasons.get("xyz")
    return Why(
        row=row,
        column=column,
        group=None if group is None else group.patch,
        beside=() if group is None else tuple(one.patch for one in group.neighbors),
        reach=max(1, round(max(sample.size) / 56)),
        facts=_list_facts(reasons),
        tiles=(*tiles, *lost),
    )


def _list_facts(reasons: dict[str, Reason]) -> tuple[tuple[str, str], ...]:
    facts = []
    for name, reason in reasons.items():
        label, kind = LABELS[name], "group" if name == "xyz" else "patch"
        enhanced = f" → {reason.after:.3g} enhanced" if reason.before != reason.after else ""
        facts.append((f"{label} {kind} {reason.patch}", f"score {reason.before:.3g}{enhanced}"))
        facts.append((f"{label} beside it", ", ".join(f"{one.score:.2g}" for one in reason.neighbors)))
    return tuple(facts)


def _choose_side(reasons: dict[str, Reason], size: tuple[int, int]) -> int:
    """Return the side of the square to cut out: what the group covers and some surroundings."""
    side = max(size) * 0.16
    if "xyz" in reasons and size[0] > 1:
        rows, columns = np.divmod(reasons["xyz"].members.numpy(), size[1])
        side = max(side, 1.4 * float(max(np.ptp(rows), np.ptp(columns))))
    return max(3, round(side))


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


def draw_why(why: Why, dark: bool = False) -> Picture:
    """Draw the tiles of an explanation below each other, each with its caption."""
    from PIL import Image, ImageDraw, ImageFont

    font, small, head = ImageFont.load_default(13), ImageFont.load_default(11), 34
    ink, quiet = ((240, 240, 240), (170, 172, 180)) if dark else ((20, 20, 24), (90, 92, 100))
    heights = [head + (TILE if tile.pictures else 0) for tile in why.tiles]
    sheet = Image.new("RGB", (2 * TILE + 4, sum(heights)), PAGE[dark])
    draw, top = ImageDraw.Draw(sheet), 0
    for tile, height in zip(why.tiles, heights, strict=True):
        draw.text((2, top + 3), tile.caption, ink, font=font)
        draw.text((2, top + 19), tile.note, quiet, font=small)
        for index, picture in enumerate(tile.pictures):
            sheet.paste(Image.fromarray(picture), (index * (TILE + 4), top + head))
        top += height
    return np.asarray(sheet)
