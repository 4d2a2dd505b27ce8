"""Tiny RGB + 3D parts: a textured plate with a wave, and dents and stains on the bad ones."""

from __future__ import annotations

import torch
from torch.nn import functional

from mm3dad.types import Meta, Sample

SIZE = 64
SMALL = {"image_size": 64, "centers": 32, "group_size": 16, "max_points": 600}
SHORT = {  # trainings short enough for a test
    "das3d": {"side": 32, "width": 8, "levels": 2, "epochs": 8},
    "g2sf": {"defects": 12, "epochs": 5, "hidden": 32, "batch": 128},
    "glfm": {"epochs": 3, "dim": 32, "depth": 2},
    "vote3deep": {"cells": 24, "max_points": 2000, "epochs": 4, "steps": 6, "batch": 2},
    "radar": {"side": 32, "patch": 16, "widths": (8, 16), "epochs": 4, "rate": 4e-3},
    "resad": {"epochs": 6, "warm": 2, "codes": 64},
}


def make_sample(seed, defect=None, category="plate", size=(SIZE, SIZE), modalities=("rgb", "xyz")):
    """One plate of 64 mm; `defect` is None, "both", "stain" (RGB only) or "dent" (3D only)."""
    generator = torch.Generator().manual_seed(seed + 1000 * (category != "plate"))
    height, width = size
    y, x = torch.meshgrid(torch.linspace(0, 0.064, height), torch.linspace(0, 0.064, width), indexing="ij")
    wave = 90 if category == "plate" else 300
    z = 0.4 + 0.002 * torch.sin(wave * x) + 1e-5 * torch.randn(size, generator=generator)
    tone = torch.tensor([0.6, 0.5, 0.4] if category == "plate" else [0.2, 0.5, 0.7])
    grain = torch.randn(1, 1, 16, 16, generator=generator)
    rgb = tone[:, None, None] + 0.05 * functional.interpolate(grain, size=size, mode="bicubic")[0]
    row, column = (0.2 + 0.6 * torch.rand(2, generator=generator)).tolist()
    bump = torch.exp(-((y - row * 0.064) ** 2 + (x - column * 0.064) ** 2) / (2 * 0.004**2))
    if defect in ("both", "stain"):
        rgb = rgb * (1 - bump) + torch.tensor([0.9, 0.1, 0.1])[:, None, None] * bump
    if defect in ("both", "dent"):
        z = z - 0.008 * bump
    xyz = torch.stack([x, y, z]).float()
    xyz[:, :2, :2] = 0
    name = f"{'test/' + defect if defect else 'train/good'}/{seed:03d}"
    return Sample(
        rgb.clamp(0, 1).float() if "rgb" in modalities else None,
        xyz if "xyz" in modalities else None,
        mask=bump > 0.5 if defect else torch.zeros(size, dtype=torch.bool),
        label=int(defect is not None),
        meta=Meta(name, category, defect or "good"),
    )


def make_samples(count, first=0, **options):
    return [make_sample(first + number, **options) for number in range(count)]


def make_cloud(seed, count=400, defect=None):
    """The same plate as a cloud without a grid: (3, 1, N)."""
    full = make_sample(seed, defect, modalities=("xyz",))
    order = torch.randperm(SIZE * SIZE, generator=torch.Generator().manual_seed(seed))[:count]
    return Sample(xyz=full.xyz.flatten(1)[:, None, order].contiguous(), meta=Meta(full.meta.id, "plate", defect, organised=False))
