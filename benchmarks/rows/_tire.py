"""Patch features of real images for the rows of the coreset: the tire training set through the embedded default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

import mm3dad
from benchmarks.harness import UnavailableError
from mm3dad.features.branches import RGBBranch, augment

WIDTH = 128


def tire_folder() -> Path:
    """Return the folder of the real images."""
    root = Path(os.environ.get("MM3DAD_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "mvtec3d_rgb"
    if not root.is_dir():
        raise UnavailableError(f"no real images at {root.name}; set MM3DAD_DATA to the folder that holds mvtec3d_rgb")
    return root


def tire_patches(split: str, turn: tuple[int, bool] = (0, False), size: int = 448, images: int | None = None) -> Iterator[torch.Tensor]:
    """Yield (P, 128) float32 for each image of a split: its patches on random directions (Gaussian, seeded).

    Args:
        turn: quarter turns and whether it is mirrored, as `augment` takes them.
        size: of the square input in pixels.
        images: how many; None for all.
    """
    samples = mm3dad.open_dataset("mvtec3d", tire_folder(), "tire", split)
    branch = RGBBranch("efficientnet_lite0", (), "default", size, aggregate=False)
    directions = None
    for number in range(min(images or len(samples), len(samples))):
        sample = samples[number]
        rows = branch.describe([augment(sample, *turn) if turn != (0, False) else sample])[0].features
        if directions is None:
            directions = torch.randn(rows.shape[1], WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
        yield rows @ directions


@cache
def tire_rows(image_size: int, images: int = 60) -> torch.Tensor:
    """Return (M, 128) float32: the patches of the training images at `image_size`."""
    return torch.cat(list(tire_patches("train", size=image_size, images=images)))
