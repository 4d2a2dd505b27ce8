"""`view_path`, behind `mm3dad view PATH`: finds out what a path is and shows it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from mm3dad import files
from mm3dad.errors import DataError, nearest_name
from mm3dad.view.colors import Array, Scale, shared_scale
from mm3dad.view.outputs import Row, is_output, read_maps, read_output, read_row_sample
from mm3dad.view.page3d import write_cloud_page
from mm3dad.view.panel import panel, stack_panels
from mm3dad.view.scene import MAP_NAMES, Scene, build_scene

if TYPE_CHECKING:
    from PIL.Image import Image

SHEET = 8  # samples on one contact sheet


def view_path(
    path: str | Path, html: str | Path | None = None, png: str | Path | None = None, *, sample_id: str | None = None
) -> list[Path]:
    """Show a sample file, a dataset tree, or the result folder of evaluate or predict.

    The 3D page shows one sample: the one asked for, else the highest score of a result folder, else the first defective
    sample of a dataset. The picture of several samples is a contact sheet of those with the highest scores, or spread over
    the dataset.

    Args:
        path: what to look at.
        html: 3D page to write. Without html and png: <name>-view.html in the current folder.
        png: still picture to write.
        sample_id: which sample of a result folder or dataset tree, e.g. "test/hole/003".

    Returns:
        The files that were written.

    Raises:
        DataError: nothing to see there, an unknown sample, a 3D page of a sample without a cloud.
        StorageError: a file cannot be written.
    """
    path = Path(path)
    if html is None and png is None:
        html = Path(f"{path.resolve().stem or 'sample'}-view.html")
    show = _show_output if is_output(path) else _show_data
    return show(path, None if html is None else Path(html), None if png is None else Path(png), sample_id)


def _show_output(path: Path, html: Path | None, png: Path | None, sample_id: str | None) -> list[Path]:
    rows = sorted((row for run in read_output(path).first_runs() for row in run.rows), key=lambda row: -row.score)
    if not rows:
        raise DataError(f"{path} holds no scored sample; run evaluate or predict again")
    if sample_id is not None:
        chosen = [row for row in rows if row.id == sample_id]
        if not chosen:
            raise DataError(f"{path} has no sample {sample_id!r}; {nearest_name(sample_id, {row.id for row in rows})}")
        rows = chosen[:1]
    written = []
    if html is not None:
        row = rows[0]
        scene = _row_scene(row)
        if scene is None:
            files_of = ", ".join(row.paths.values()) or "none recorded"
            raise DataError(f"the files of {row.id!r} cannot be read ({files_of}); put them back or view another sample")
        written.append(write_cloud_page(html, scene, title=f"{_name(scene)}, score {row.score:.3g}", threshold=row.threshold))
    if png is not None:
        scenes = [(row, scene) for row in rows[:SHEET] if (scene := _row_scene(row)) is not None]
        if not scenes:
            raise DataError(f"none of the samples of {path} can be read from their files; put them back where they were")
        scale = _scale([scene for _, scene in scenes], rows[0].threshold)
        panels = [panel(scene, scale=scale, score=row.score, threshold=row.threshold) for row, scene in scenes]
        written.append(_write_png(png, panels))
    return written


def _show_data(path: Path, html: Path | None, png: Path | None, sample_id: str | None) -> list[Path]:
    from mm3dad.data.single import list_inputs, read_sample

    inputs = list_inputs(path)
    samples = {}
    if sample_id is not None or len(inputs) == 1:
        for file in inputs if sample_id is None else [file for file in inputs if file.stem == Path(sample_id).name]:
            sample = read_sample(file)
            if sample_id in (None, sample.meta.id):
                samples[file] = sample
        if not samples:
            raise DataError(f"{path} has no sample {sample_id!r}; ids look like test/hole/003")
        inputs = list(samples)[:1]
    written = []
    if html is not None:
        # a dataset is opened to see its defects: the first part of a folder that is not "good"
        defective = [file for file in inputs if "good" not in file.parts and "test" in file.parts]
        first = (defective or inputs)[0]
        written.append(write_cloud_page(html, samples.get(first) or read_sample(first)))
    if png is not None:
        step = max(1, len(inputs) // SHEET)
        panels = [panel(samples.get(file) or read_sample(file)) for file in inputs[::step][:SHEET]]
        written.append(_write_png(png, panels))
    return written


def _row_scene(row: Row) -> Scene | None:
    sample = read_row_sample(row)
    if sample is None:
        return None
    maps: dict[str, Array] = {name: values for name, values in read_maps(row).items() if name in MAP_NAMES}
    return build_scene(sample, maps)


def _name(scene: Scene) -> str:
    return f"{scene.meta.category} / {scene.meta.id}"


def _scale(scenes: list[Scene], threshold: float | None) -> Scale | None:
    maps = [scene.map for scene in scenes if scene.map is not None]
    return shared_scale(maps, threshold) if maps else None


def _write_png(path: Path, panels: list[Image]) -> Path:
    buffer = io.BytesIO()
    stack_panels(panels).save(buffer, "PNG")
    return files.write_bytes(path, buffer.getvalue())
