"""Picture rows of the report: which samples are worth a look, drawn small and embedded as JPEG."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterator

import numpy as np

from mm3dad.errors import Mm3dadError
from mm3dad.view.colors import Array, Picture, Scale, heat_picture, shared_scale
from mm3dad.view.outputs import Row, Run, read_maps, read_row_sample
from mm3dad.view.panel import draw_tiles
from mm3dad.view.scene import MAP_NAMES, build_scene
from mm3dad.view.tables import number, text

TILE = 220  # height of an embedded picture, in pixels
MAX_ROWS = 48  # of the whole report: keeps 1,000 predictions under 15 MB and 20 s
MAX_BYTES = 12_000_000


def pick_rows(rows: list[Row], count: int) -> dict[str, list[Row]]:
    """Choose the samples to show, by what a reader asks first: where it errs, then what a hit looks like.

    Args:
        rows: of one run.
        count: pictures at most per heading, >= 1.

    Returns:
        Heading -> rows; a row stands under one heading only.
    """
    finite = [row for row in rows if np.isfinite(row.score)]
    ranked = sorted(finite, key=lambda row: (-row.score, row.id))
    good = [row for row in ranked if row.label == 0]
    bad = [row for row in reversed(ranked) if row.label == 1]
    if not good and not bad:
        return {"highest scores": ranked[:count], "lowest scores": list(reversed(ranked[count:]))[:count]}
    missed = bad[:count]
    groups: dict[str, list[Row]] = {}
    for row in bad[count:]:
        groups.setdefault(row.defect or "", []).append(row)
    medians = [group[len(group) // 2] for group in groups.values()]
    typical = sorted(medians, key=lambda row: -row.score)[: 2 * count]
    return {"defective, lowest scores": missed, "good, highest scores": good[:count], "typical hits": typical}


class Gallery:
    """Draws picture rows until the report's budget of rows and bytes is spent.

    Args:
        runs: how many runs share the budget.
    """

    def __init__(self, runs: int) -> None:
        self.rows_left, self.bytes_left = MAX_ROWS, MAX_BYTES
        self.per_heading = int(np.clip(MAX_ROWS // (4 * max(1, runs)), 1, 3))

    def draw(self, run: Run) -> str:
        """Return the picture rows of one run; all of them share one scale of colours."""
        picked = {heading: rows for heading, rows in pick_rows(run.rows, self.per_heading).items() if rows}
        maps = {row.id: read_maps(row) for rows in picked.values() for row in rows}
        fused = [found["map"] for found in maps.values() if "map" in found]
        threshold = next((row.threshold for rows in picked.values() for row in rows if row.threshold is not None), None)
        scale = shared_scale(fused, threshold) if fused else None
        return "".join(self._section(heading, rows, maps, scale) for heading, rows in picked.items())

    def _section(self, heading: str, rows: list[Row], maps: dict[str, dict[str, Array]], scale: Scale | None) -> str:
        figures = "".join(self._figures(rows, maps, scale))
        return f"<h4>{text(heading)}</h4>{figures}" if figures else ""

    def _figures(self, rows: list[Row], maps: dict[str, dict[str, Array]], scale: Scale | None) -> Iterator[str]:
        for row in rows:
            if self.rows_left < 1 or self.bytes_left < 0:
                return
            figure = draw_figure(row, maps[row.id], scale)
            self.rows_left -= 1
            self.bytes_left -= len(figure)
            yield figure


def draw_figure(row: Row, maps: dict[str, Array], scale: Scale | None) -> str:
    """Return one sample as RGB | cloud | score map | truth; a picture that cannot be made says so."""
    tiles = _tiles(row, maps, scale)
    if not any(name in tiles for name in ("RGB", "cloud")):
        tiles = {"": None, **tiles}
    cells = "".join(_cell(name, picture, row) for name, picture in tiles.items())
    verdict = ""
    if row.threshold is not None:
        called = row.score > row.threshold
        right = None if row.label is None else called == bool(row.label)
        kind = "" if right is None else "hit" if right else "miss"
        word = "defective" if called else "good"
        verdict = f" <span class='tag {kind}'>called {word}{'' if right is not False else ', wrong'}</span>"
    name = row.id if row.defect is None or row.defect in row.id else f"{row.id} ({row.defect})"
    return (
        f"<figure><figcaption><b>{text(name)}</b> score {number(row.score)}{verdict}</figcaption><div class='tiles'>{cells}</div></figure>"
    )


def _tiles(row: Row, maps: dict[str, Array], scale: Scale | None) -> dict[str, Picture | None]:
    scores = {name: values for name, values in maps.items() if name in MAP_NAMES}
    sample = read_row_sample(row)
    if sample is not None:
        try:
            scene = build_scene(sample, scores, longest=2 * TILE)
            if scene.mask is None and "mask" in maps:
                scene = dataclasses.replace(scene, mask=_resize_mask(maps["mask"], scene.size))
            return {**draw_tiles(scene, scale, TILE)}
        except Mm3dadError:  # the files changed since: show what was kept
            pass
    tiles: dict[str, Picture | None] = {}
    if "map" in maps and scale is not None and maps["map"].shape[0] > 1:
        tiles["score map"] = _fit(heat_picture(maps["map"], scale))
    if "mask" in maps and maps["mask"].shape[0] > 1:
        tiles["ground truth"] = _fit(np.where(maps["mask"][..., None] > 0, np.uint8(255), np.uint8(40)).repeat(3, -1))
    return tiles


def _resize_mask(mask: Array, size: tuple[int, int]) -> np.ndarray:
    """Bring a kept mask (h, w) to (H, W) by the nearest pixel."""
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return np.asarray(mask)[np.ix_(rows, columns)] > 0


def _fit(picture: Picture) -> Picture:
    from PIL import Image

    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((max(1, min(3 * TILE, round(width * TILE / height))), TILE)))


def _cell(name: str, picture: Picture | None, row: Row) -> str:
    if picture is None:
        return "<div class='gone'>picture not available: its file was moved or cannot be read</div>"
    height, width = picture.shape[:2]
    return (
        f"<div><img loading='lazy' width='{width}' height='{height}' alt='{text(name)} of {text(row.id)}' "
        f"src='{data_address(picture)}'><span>{text(name)}</span></div>"
    )


def encode_jpeg(picture: Picture, quality: int = 80) -> str:
    """Return a picture as base64 JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def data_address(picture: Picture) -> str:
    """Return a picture as an address that holds it: JPEG, or WebP where it is clear in places."""
    from PIL import Image

    if picture.shape[2] == 3:
        return f"data:image/jpeg;base64,{encode_jpeg(picture)}"
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
