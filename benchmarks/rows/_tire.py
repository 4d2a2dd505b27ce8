"""Patch features of real images for the rows of the coreset: the tire training set through the embedded default."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

import mm3dad
from benchmarks.harness import UnavailableError
from mm3dad.features.branches import RGBBranch

WIDTH = 128


@cache
def tire_rows(image_size: int, images: int = 60) -> torch.Tensor:
    """Return (M, 128) float32: the patches of the training images at `image_size`, on random directions (Gaussian, seeded)."""
    root = Path(os.environ.get("MM3DAD_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "mvtec3d_rgb"
    if not root.is_dir():
        raise UnavailableError(f"no real images at {root.name}; set MM3DAD_DATA to the folder that holds mvtec3d_rgb")
    samples = mm3dad.open_dataset("mvtec3d", root, "tire", "train")
    branch = RGBBranch("efficientnet_lite0", (), "default", image_size, aggregate=False)
    rows = torch.cat([branch.describe([samples[i]])[0].features for i in range(min(images, len(samples)))])
    directions = torch.randn(rows.shape[1], WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
    return rows @ directions
