"""`view_path`, behind `mm3dad view PATH`: pages and pictures of what lies there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mm3dad import files
from mm3dad.errors import DataError
from mm3dad.view.browse import Entry, list_entries, pick_entry
from mm3dad.view.colors import Scale, shared_scale
from mm3dad.view.page3d import write_cloud_page
from mm3dad.view.panel import panel, stack_panels
from mm3dad.view.scene import Scene
from mm3dad.view.turn import write_turning

if TYPE_CHECKING:
    from PIL.Image import Image

    from mm3dad.run.explain import Explainer

SHEET = 8  # samples on one contact sheet


def view_path(
    path: str | Path,
    html: str | Path | None = None,
    png: str | Path | None = None,
    gif: str | Path | None = None,
    mp4: str | Path | None = None,
    *,
    sample_id: str | None = None,
    model: str | Path | None = None,
    layer: str | None = None,
) -> list[Path]:
    """Show a sample file, a dataset tree, or the result folder of evaluate or predict.

    The 3D page, the turning picture and the video show one sample: the one asked for, else the highest score of a result folder, else the
    first defective sample of a dataset. The picture of several samples is a contact sheet of those with the highest scores, or
    spread over the dataset.

    Args:
        path: what to look at.
        html: 3D page to write. Without any file: <name>-view.html in the current folder.
        png: still picture to write.
        gif: turning picture to write.
        mp4: the same as a video to write.
        sample_id: which sample of a result folder or dataset tree, e.g. "test/hole/003".
        model: folder of a saved model that scores the sample and explains the page's most anomalous places.
        layer: of the turning picture and the video; the fused score, else colour, when None.

    Returns:
        The files that were written.

    Raises:
        DataError: nothing to see there, an unknown sample, a 3D page of a sample without a cloud.
        ConfigError: an unknown layer, a model that explains nothing.
        ModelError: the model cannot be loaded.
        MissingPackageError: a video without the extra `video`.
        StorageError: a file cannot be written.
    """
    path = Path(path)
    if all(target is None for target in (html, png, gif, mp4)):
        html = Path(f"{path.resolve().stem or 'sample'}-view.html")
    entries = list_entries(path, open_model(model))
    entry = pick_entry(entries, path, sample_id)
    written = []
    moving = [target for target in (gif, mp4) if target is not None]
    if html is not None or moving:
        scene = entry.open()
        if html is not None:
            limits = {"threshold": entry.threshold, "pixel_threshold": entry.pixel_threshold}
            written.append(write_cloud_page(html, scene, title=entry.title, **limits, explained=entry.explain_peaks()))
        written += [write_turning(target, scene, layer, threshold=entry.threshold) for target in moving]
    if png is not None:
        written.append(_write_png(Path(png), path, [entry] if sample_id is not None else _choose_sheet(entries)))
    return written


def open_model(folder: str | Path | None) -> Explainer | None:
    """Load a model that explains; None without a folder."""
    if folder is None:
        return None
    from mm3dad.run.explain import Explainer

    return Explainer(folder)


def _choose_sheet(entries: Sequence[Entry]) -> list[Entry]:
    """The highest scores, or a dataset's samples evenly spread."""
    step = 1 if entries[0].score is not None else max(1, len(entries) // SHEET)
    return list(entries[::step][:SHEET])


def _write_png(target: Path, path: Path, entries: Sequence[Entry]) -> Path:
    scenes: list[tuple[Entry, Scene]] = []
    failed: DataError | None = None
    for entry in entries:
        try:
            scenes.append((entry, entry.open()))
        except DataError as error:
            failed = error
        entry.close()
    if not scenes:
        raise DataError(f"no sample of {path} can be shown: {failed}")
    scale = _scale([scene for _, scene in scenes], scenes[0][0].threshold)
    panels: list[Image] = [panel(scene, scale=scale, score=entry.score, threshold=entry.threshold) for entry, scene in scenes]
    buffer = io.BytesIO()
    stack_panels(panels).save(buffer, "PNG")
    return files.write_bytes(target, buffer.getvalue())


def _scale(scenes: list[Scene], threshold: float | None) -> Scale | None:
    maps = [scene.map for scene in scenes if scene.map is not None]
    return shared_scale(maps, threshold) if maps else None
