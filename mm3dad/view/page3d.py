"""`write_cloud_page`: one sample as a self-contained 3D page, to open without a server, a network or an installation."""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm3dad import files
from mm3dad.errors import DataError
from mm3dad.types import Prediction
from mm3dad.view.colors import Array, group_table, heat_table
from mm3dad.view.gallery import encode_jpeg
from mm3dad.view.layers import Layer, Layers
from mm3dad.view.normals import toward_viewer
from mm3dad.view.panel import panel
from mm3dad.view.scene import Scene, build_scene
from mm3dad.view.surface import height_table
from mm3dad.view.why import Why

if TYPE_CHECKING:
    from mm3dad.types import Sample

MAX_POINTS = 120_000
MAX_BYTES = 2_650_000  # of point data in base64; script, style and the still picture stay under the rest of 3 MB

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<canvas id="scene" tabindex="0" aria-label="3D point cloud; drag to turn, wheel to zoom, click a point for its score"></canvas>
<div id="mark" hidden></div>
<section id="head" class="card"><h1>{title}</h1><p>{subtitle}</p>
<p class="keys">drag to turn, right drag or two fingers to move, wheel or pinch to zoom, click a point for its score</p></section>
<section id="info" class="card" hidden aria-live="polite"><table><tbody id="facts"></tbody></table><div id="why" hidden></div></section>
<section id="controls" class="card">
<div id="layers" role="group" aria-label="layers"></div>
<div id="bar"><span id="low"></span><canvas id="strip" width="256" height="1"></canvas><span id="high"></span></div>
<label>point size <input id="size" type="range" min="0.3" max="4" step="0.1" value="1"><output id="dots">1</output></label>
<div id="scored">
<label>threshold <input id="threshold" type="range"><output id="cut"></output></label>
<label class="check"><input id="above" type="checkbox"><span>highlight above: <span id="share"></span></span></label>
</div>
<div id="places" role="group" aria-label="explained places" hidden><span>why:</span></div>
<button id="reset" type="button" title="key r">reset view</button>
</section>
<section id="fallback" hidden><p>{apology}</p><img alt="still picture of the sample" src="data:image/jpeg;base64,{still}"></section>
<noscript><style>#controls, #fallback p {{ display: none; }} #fallback {{ display: block !important; }}</style>
<p style="position:fixed;top:90px;padding:0 16px">This page draws the cloud with JavaScript, which is switched off here.</p></noscript>
<script id="data" type="application/json">{data}</script>
<script>
{script}</script>
</body>
</html>
"""
_APOLOGY = "This browser offers no WebGL, which the 3D view needs; switch hardware acceleration on or open the page in another browser."


def write_cloud_page(
    path: str | Path,
    sample: Sample | Scene,
    prediction: Any = None,
    title: str | None = None,
    *,
    threshold: float | None = None,
    pixel_threshold: float | None = None,
    explained: Sequence[Why] = (),
) -> Path:
    """Write one sample as a self-contained 3D page of less than 3 MB: orbit, layers, threshold, score of a clicked point, and why.

    Args:
        path: the HTML file.
        sample: a sample with a cloud, or a scene built from one.
        prediction: a `Prediction`, a mapping of names to (h, w) maps, one map, or None.
        title: head line; the sample's category and id when None.
        threshold: image threshold; the prediction's own when None.
        pixel_threshold: map value at which the slider starts; the prediction's own when None, else a high value of the map.
        explained: places whose explanation goes along: shown when they are clicked.

    Raises:
        DataError: the sample has no measured point.
        ShapeError: a map that does not fit the sample.
        StorageError: the page cannot be written.
    """
    scene = sample if isinstance(sample, Scene) else build_scene(sample, prediction)
    score = None
    if isinstance(prediction, Prediction):
        score, threshold = prediction.score, prediction.threshold if threshold is None else threshold
        pixel_threshold = prediction.pixel_threshold if pixel_threshold is None else pixel_threshold
    if scene.xyz is None or not scene.valid.any():
        raise DataError(f"sample {scene.meta.id!r} has no measured point, so there is no 3D view; write a still picture instead (--png)")
    title = f"{scene.meta.category} / {scene.meta.id}" if title is None else title
    packed = pack_scene(scene, threshold, [_pack_why(why) for why in explained])
    packed["pixel_threshold"] = None if pixel_threshold is None else float(pixel_threshold)
    facts = [f"{packed['count']:,} of {int(scene.valid.sum()):,} points"]
    facts += [f"defect: {scene.meta.defect}"] if scene.meta.defect else []
    facts += [f"score {score:.3g}"] if score is not None else []
    facts += [f"threshold {threshold:.3g}"] if threshold is not None else []
    still = io.BytesIO()
    panel(_thin_evenly(scene, 240), threshold=threshold, title="", size=240).save(still, "JPEG", quality=82)
    assets = importlib.resources.files("mm3dad.view") / "assets"
    page = _PAGE.format(
        title=html.escape(title),
        subtitle=html.escape(", ".join(facts)),
        apology=_APOLOGY,
        style=(assets / "cloud.css").read_text(encoding="utf-8"),
        script=(assets / "cloud.js").read_text(encoding="utf-8"),
        still=base64.b64encode(still.getvalue()).decode(),
        # "<" could end the script element early
        data=json.dumps(packed, allow_nan=False).replace("<", "\\u003c"),
    )
    return files.write_text(path, page)


def pack_scene(scene: Scene, threshold: float | None = None, explained: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return what the page's script draws: 16-bit positions, layers in 8 or 16 bits, thinned on the grid to what fits.

    Args:
        scene: with a cloud that has at least one measured point.
        threshold: image threshold, or None.
        explained: places, packed.
    """
    assert scene.xyz is not None
    layer_bytes = 3 * (scene.rgb is not None) + 2 + 2 * len(scene.maps) + (scene.mask is not None) + 2 * (scene.groups is not None)
    room = MAX_BYTES - len(json.dumps(explained))
    limit = max(1, min(MAX_POINTS, room * 3 // 4 // (6 + 3 + 1 + layer_bytes)))
    rows, columns = thin_grid(scene, limit)
    thin = scene.take(rows, columns)
    assert thin.xyz is not None
    kept, layers = thin.valid, Layers(thin, threshold)
    points = thin.xyz[:, kept].astype(np.float64)
    origin, step = points.min(1), np.maximum(np.ptp(points, axis=1), 1e-9) / 65535
    position = np.rint((points - origin[:, None]) / step[:, None]).astype("<u2")
    low, high = np.quantile(points, [0.01, 0.99], axis=1)
    up_y, up_z = toward_viewer(scene.xyz, scene.valid)
    spread = np.maximum(high - low, 1e-9)
    return {
        "size": list(scene.size),
        "grid": [len(rows), len(columns)],
        "count": int(kept.sum()),
        "measured": _text(np.packbits(kept.ravel())),
        "position": _text(position.T),
        "normals": _text(_byte((layers.normals[:, kept].T + 1) / 2)),
        "origin": origin.tolist(),
        "step": step.tolist(),
        "flip": [1.0, up_y, up_z],
        "center": ((low + high) / 2).tolist(),
        "radius": float(np.linalg.norm(spread) / 2),
        "spacing": float(np.sqrt(spread[0] * spread[1] / max(1, kept.sum()))),
        "threshold": None if threshold is None else float(threshold),
        "layers": [_pack_layer(layer, kept) for layer in layers.values()],
        "first": list(layers).index(layers.first),
        "tables": {"score": _text(heat_table()), "scalar": _text(height_table()), "group": _text(group_table())},
        "explained": list(explained),
    }


def _pack_layer(layer: Layer, kept: np.ndarray) -> dict[str, Any]:
    """Quantise the values of the kept points; a NaN becomes the lowest value."""
    head = {"name": layer.name, "kind": layer.kind}
    values = layer.values[..., kept]
    if layer.name == "normals":  # the light is made from them, so they are there already
        return head
    if layer.kind == "score":
        assert layer.scale is not None
        return {**head, **_pack_scores(values), "low": layer.scale.low, "high": layer.scale.high}
    if layer.kind == "color":
        return {**head, "values": _text(_byte(values.T))}
    if layer.kind == "scalar":
        return {**head, "values": _text(_byte(np.nan_to_num(values))), "ends": list(layer.ends)}
    if layer.kind == "group":
        return {**head, "values": _text(np.where(values < 0, 65535, values).astype("<u2"))}
    return {**head, "values": _text(values.astype(np.uint8))}


def _pack_why(why: Why) -> dict[str, Any]:
    tiles = [
        {"caption": tile.caption, "note": tile.note, "pictures": [encode_jpeg(one, 85) for one in tile.pictures]} for tile in why.tiles
    ]
    return {
        "pixel": [why.row, why.column],
        "group": why.group,
        "beside": why.beside,
        "reach": why.reach,
        "facts": why.facts,
        "tiles": tiles,
    }


def _thin_evenly(scene: Scene, longest: int) -> Scene:
    """Take every n-th row and column of a picture, for the small still one."""
    step = max(1, max(scene.size) // longest) if scene.organised else 1
    return scene.take(*(np.arange(0, n, step) for n in scene.size))


def thin_grid(scene: Scene, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns to keep so that at most `limit` measured points remain, evenly spread.

    Row i of h kept ones is row floor((i + 1/2) * H / h), which the viewer repeats to name a point's pixel.

    Raises:
        DataError: the measured points lie so that every thinner grid misses them.
    """
    height, width = scene.size
    share = min(1.0, limit / max(1, int(scene.valid.sum())))
    for shrink in 0.98 ** np.arange(200):
        factor = shrink * (share if height == 1 else np.sqrt(share))
        h, w = (1 if height == 1 else max(1, int(height * factor))), max(1, int(width * factor))
        rows = ((np.arange(h) + 0.5) * height / h).astype(np.int64)
        columns = ((np.arange(w) + 0.5) * width / w).astype(np.int64)
        if 0 < scene.valid[np.ix_(rows, columns)].sum() <= limit:
            return rows, columns
    raise DataError(f"sample {scene.meta.id!r} cannot be thinned to {limit} points; resample its cloud to a smaller grid")


def _pack_scores(kept: Array) -> dict[str, Any]:
    finite = kept[np.isfinite(kept)]
    first, last = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    unit = (np.nan_to_num(kept, nan=first, posinf=last, neginf=first).astype(np.float64) - first) / max(last - first, 1e-12)
    return {
        "values": _text(np.rint(unit * 65535).astype("<u2")),
        "first": first,
        "last": last,
        "suggested": float(np.quantile(finite, 0.98)) if finite.size else 0.0,
    }


def _byte(unit: Array) -> np.ndarray:
    return (unit * 255).round().astype(np.uint8)


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
