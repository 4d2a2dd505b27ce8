"""Contact sheet of a folder of samples: image, shaded relief and outlined defect of each, two samples a line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mm3dad import files
from mm3dad.errors import DataError
from mm3dad.registry import DATASETS
from mm3dad.view.colors import PAGE, Picture, outline_mask, to_picture
from mm3dad.view.scene import build_scene
from mm3dad.view.surface import height_picture

if TYPE_CHECKING:
    from mm3dad.types import Sample

TILE, GAP, SHOWN = 130, 6, 12  # pixels of a tile and between tiles; samples at most


def write_sheet(root: str | Path, category: str, folder: str, path: str | Path) -> Path:
    """Write the contact sheet of one folder of a tree in MVTec 3D-AD's layout.

    Args:
        root: of the tree.
        category: product class.
        folder: "<split>/<good|defect>".
        path: PNG to write.

    Raises:
        DataError: no such samples.
        StorageError: `path` cannot be written.
    """
    from PIL import Image

    split, _, defect = folder.partition("/")
    dataset = DATASETS.get("mvtec3d")(root, category, split, strict=False)
    records = [record for record in dataset.records if record.defect == defect]
    if not records:
        raise DataError(f"expected samples in {Path(root) / category / folder}, found none; synthesize some first")
    step = max(1, len(records) // SHOWN)
    rows = [np.concatenate(_tiles(dataset.read(record)), axis=1) for record in records[::step][:SHOWN]]
    height, width = TILE + GAP, max(row.shape[1] for row in rows) + GAP
    sheet = np.full((-(-len(rows) // 2) * height + GAP, 2 * width + GAP, 3), PAGE[False], np.uint8)
    for number, row in enumerate(rows):
        top, left = number // 2 * height + GAP, number % 2 * width + GAP
        sheet[top : top + TILE, left : left + row.shape[1]] = row
    # 256 colours are plenty for thumbnails, and a third of the bytes.
    picture = Image.fromarray(sheet).quantize(256)
    return files.write_with(path, lambda temporary: picture.save(temporary, format="PNG", optimize=True))


def _tiles(sample: Sample) -> list[Picture]:
    """Draw what there is of a sample: image, relief, and the defect outlined on the relief (on the image without points)."""
    from PIL import Image

    scene = build_scene(sample, longest=2 * TILE)
    pictures = []
    if scene.rgb is not None:
        pictures.append(to_picture(scene.rgb))
    if scene.xyz is not None:
        pictures.append(height_picture(scene.xyz, scene.valid))
    if scene.mask is not None:
        pictures.append(outline_mask(pictures[-1].copy(), scene.mask, width=2))
    return [np.asarray(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.LANCZOS)) for picture in pictures]
