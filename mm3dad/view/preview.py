"""`read_preview`: the first look at a sample, read with numpy alone, because loading torch takes longer than drawing a frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mm3dad.data.images import load_mask, load_rgb, load_xyz
from mm3dad.data.organized import MAX_EXTENT
from mm3dad.types import Meta
from mm3dad.view.colors import Array
from mm3dad.view.scene import Scene, join_maps

PLAIN = {"rgb", "xyz", "gt"}  # what needs no camera and no point format


def read_preview(paths: Mapping[str, str], maps: Mapping[str, Array], meta: Meta, label: int | None) -> Scene | None:
    """Return the scene of a sample of plain files, the same that the full reader gives.

    Args:
        paths: role -> file.
        maps: name -> (h, w) scores.
        meta: of the scene.
        label: 0, 1 or None; a good part without a truth has an empty one.

    Returns:
        The scene, or None where only the full reader can read the files, or say what is wrong with them.

    Raises:
        DataError: a file is damaged.
        ShapeError: a map that does not fit the sample.
    """
    if "xyz" not in paths or not set(paths) <= PLAIN or not all(Path(path).is_file() for path in paths.values()):
        return None
    xyz = load_xyz(paths["xyz"])
    size = xyz.shape[1], xyz.shape[2]
    rgb = load_rgb(paths["rgb"]) if "rgb" in paths else None
    mask = load_mask(paths["gt"]) if "gt" in paths else np.zeros(size, bool) if label == 0 else None
    if any(one is not None and one.shape[-2:] != size for one in (rgb, mask)) or (label == 0 and mask is not None and mask.any()):
        return None
    valid = np.isfinite(xyz).all(0) & (xyz != 0).any(0)
    xyz = np.where(valid, xyz, np.float32(0))
    if 1 in size or (valid.any() and float(np.ptp(xyz[:, valid], axis=1).max()) > MAX_EXTENT):
        return None
    return Scene(size, rgb, xyz, valid, mask, join_maps(maps, size), meta=meta)
