"""`panel`: RGB | cloud | score map | ground truth of one sample, side by side in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mm3dad.errors import DataError
from mm3dad.types import Prediction
from mm3dad.view.cloud import splat_clear
from mm3dad.view.colors import PAGE, Picture, Scale, heat_table, shared_scale
from mm3dad.view.scene import Scene, as_colors, build_scene

if TYPE_CHECKING:
    from PIL.Image import Image

    from mm3dad.types import Sample

GAP, TITLE = 8, 20  # pixels between tiles, and of a line of text


def draw_tiles(scene: Scene, scale: Scale | None = None, size: int = 240) -> dict[str, Picture]:
    """Draw the pictures of one scene: any of "RGB", "cloud", "score map", "ground truth", in this order.

    Args:
        scene: what there is; a picture whose data are missing is left out.
        scale: of the score map; its own when None.
        size: height of each tile in pixels.

    Returns:
        Name -> (h, w, 3) uint8; (h, w, 4) with nothing behind the points where it is a cloud.
    """
    from PIL import Image

    def fit(picture: Picture) -> Picture:
        height, width = picture.shape[:2]
        wide = max(1, min(3 * size, round(width * size / height)))
        return np.asarray(Image.fromarray(picture).resize((wide, size), Image.Resampling.LANCZOS))

    def place(picture: Picture) -> Picture:
        """Show a picture of the grid as it is; colours of a list of points only mean something on the cloud."""
        if scene.organised:
            return fit(picture)
        assert scene.xyz is not None
        return splat_clear(scene.xyz, scene.valid, as_colors(picture), (size, size))

    tiles: dict[str, Picture] = {}
    if scene.rgb is not None and scene.organised:
        tiles["RGB"] = fit(scene.base_picture())
    if scene.xyz is not None:
        tiles["cloud"] = splat_clear(scene.xyz, scene.valid, scene.base_colors(), (size, size))
    if scene.map is not None:
        tiles["score map"] = place(scene.heat(scale or shared_scale([scene.map])))
    if scene.mask is not None:
        tiles["ground truth"] = place(scene.truth())
    return tiles


def panel(
    sample: Sample | Scene,
    prediction_map: Any = None,
    *,
    scale: Scale | None = None,
    threshold: float | None = None,
    score: float | None = None,
    title: str | None = None,
    size: int = 240,
    dark: bool = False,
) -> Image:
    """Draw RGB | cloud | score map | ground truth side by side; what is missing is left out.

    Args:
        sample: the sample, or a scene that is built already.
        prediction_map: a `Prediction`, (h, w) scores, or a mapping of names to maps.
        scale: colours of the score map; give one `shared_scale` when pictures are compared.
        threshold: image threshold, keeps a good part's map cold and stands in the head line.
        score: image score for the head line.
        title: head line; the sample's category and id when None, "" for no head line.
        size: height of the tiles in pixels.
        dark: dark background.

    Returns:
        An RGB picture.

    Raises:
        ShapeError: a map that does not fit the sample.
        DataError: a size below 16 pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    if size < 16:
        raise DataError(f"a panel needs tiles of at least 16 pixels, got {size}; 240 is a good size")
    scene = sample if isinstance(sample, Scene) else build_scene(sample, prediction_map, longest=3 * size)
    if isinstance(prediction_map, Prediction):
        score = prediction_map.score if score is None else score
        threshold = prediction_map.threshold if threshold is None else threshold
    if scale is None and scene.map is not None:
        scale = shared_scale([scene.map], threshold)
    tiles = draw_tiles(scene, scale, size)
    head = " / ".join((scene.meta.category, scene.meta.id)) if title is None else title
    verdict = _verdict(score, threshold)
    head = "   ".join(part for part in (head, verdict) if part)
    ink, quiet = ((240, 240, 240), (170, 172, 180)) if dark else ((20, 20, 24), (90, 92, 100))
    top = GAP + (TITLE + 2 if head else 0) + TITLE
    foot = TITLE if "score map" in tiles else 0
    width = sum(tile.shape[1] for tile in tiles.values()) + GAP * (len(tiles) + 1)
    picture = Image.new("RGB", (width, top + size + foot + GAP), PAGE[dark])
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    if head:
        draw.text((GAP, GAP - 2), _shorten(head, width - 2 * GAP, font), ink, font=font)
    left = GAP
    for name, tile in tiles.items():
        draw.text((left, top - TITLE + 1), name, quiet, font=small)
        drawn = Image.fromarray(tile)
        picture.paste(drawn, (left, top), drawn if drawn.mode == "RGBA" else None)
        if name == "score map" and scale is not None:
            _draw_bar(picture, scale, (left, top + size + 4, tile.shape[1]), quiet)
        left += tile.shape[1] + GAP
    return picture


def stack_panels(panels: Sequence[Image], dark: bool = False) -> Image:
    """Put panels below each other into one contact sheet."""
    from PIL import Image

    sheet = Image.new("RGB", (max(one.width for one in panels), sum(one.height for one in panels)), PAGE[dark])
    top = 0
    for one in panels:
        sheet.paste(one, (0, top))
        top += one.height
    return sheet


def _verdict(score: float | None, threshold: float | None) -> str:
    if score is None:
        return ""
    if threshold is None:
        return f"score {score:.3g}"
    return f"score {score:.3g} {'>' if score > threshold else '<='} threshold {threshold:.3g}"


def _shorten(text: str, width: int, font: Any) -> str:
    """Cut the front of a head line that is too wide: the end of an id says more than its start."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


def _draw_bar(picture: Image, scale: Scale, place: tuple[int, int, int], ink: tuple[int, int, int]) -> None:
    """Draw the colour bar with the scores at its two ends."""
    from PIL import Image, ImageDraw, ImageFont

    left, top, width = place
    font, draw = ImageFont.load_default(11), ImageDraw.Draw(picture)
    low = f"{0 if abs(scale.low) < 1e-3 * abs(scale.high) else scale.low:.3g}"  # a few millionths are nothing here
    high = f"{scale.high:.3g}"
    start = left + round(font.getlength(low)) + 5
    stop = left + width - round(font.getlength(high)) - 5
    draw.text((left, top), low, ink, font=font)
    draw.text((stop + 5, top), high, ink, font=font)
    if stop - start > 8:
        picture.paste(Image.fromarray(np.ascontiguousarray(heat_table()[None])).resize((stop - start, 8)), (start, top + 3))
