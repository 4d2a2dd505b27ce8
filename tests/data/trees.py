"""Small dataset trees for tests: a block on a tilted table, in MVTec 3D-AD's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image


def make_arrays(size: int = 32, seed: int = 0, defective: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rgb (H, W, 3) uint8, xyz (H, W, 3) float32 metres at 1 mm per pixel, mask (H, W) uint8 0 or 255."""
    random = np.random.default_rng(seed)
    v, u = np.mgrid[:size, :size]
    block = (abs(u - size / 2) < size / 4) & (abs(v - size / 2) < size / 4)
    z = 0.5 + 0.1 * u / 1000 - 0.03 * block + random.normal(0, 1e-4, (size, size))
    rgb = np.where(block[..., None], (180, 120, 60), (40, 40, 45)) + random.integers(0, 10, (size, size, 3))
    mask = np.zeros((size, size), np.uint8)
    if defective:
        top, left = random.integers(size // 2 - size // 8, size // 2, 2)
        mask[top : top + size // 8, left : left + size // 8] = 255
        z = z - 0.006 * (mask > 0)
        rgb[mask > 0] = (250, 250, 250)
    xyz = np.stack((u / 1000 + 0.001, v / 1000 + 0.001, z), -1).astype(np.float32)
    return rgb.astype(np.uint8), xyz, mask


def write_sample(
    folder: Path, stem: str, size: int = 32, seed: int = 0, modalities: Sequence[str] = ("rgb", "xyz"), gt: bool = False
) -> None:
    """Write one sample below a <good|defect> folder."""
    rgb, xyz, mask = make_arrays(size, seed, defective=folder.name != "good")
    for role in (*modalities, *(["gt"] if gt else [])):
        (folder / role).mkdir(parents=True, exist_ok=True)
    if "rgb" in modalities:
        Image.fromarray(rgb).save(folder / "rgb" / f"{stem}.png")
    if "xyz" in modalities:
        tifffile.imwrite(folder / "xyz" / f"{stem}.tiff", xyz, photometric="rgb")
    if gt:
        Image.fromarray(mask).save(folder / "gt" / f"{stem}.png")


def write_tree(
    root: Path,
    categories: Sequence[str] = ("a",),
    train: int = 4,
    validation: int = 1,
    test_good: int = 2,
    test_bad: int = 2,
    size: int = 32,
    modalities: Sequence[str] = ("rgb", "xyz"),
) -> Path:
    """Write a whole tree with the defect folder "dent" and return its root; samples of one number repeat."""
    seed = 0
    for category in categories:
        for folder, count in (("train/good", train), ("validation/good", validation), ("test/good", test_good), ("test/dent", test_bad)):
            for index in range(count):
                seed += 1
                write_sample(root / category / folder, f"{index:03d}", size, seed, modalities, gt=folder.startswith("test"))
    return root
