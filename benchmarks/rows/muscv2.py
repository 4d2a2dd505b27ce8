"""muscv2's scoring of a set, beside the published algorithm: as written, and with its Python loops removed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import mm3dad
from benchmarks.harness import Peer, Row
from benchmarks.peers.musc import score_set
from mm3dad.methods._set import Described

GRID, CENTERS = 28, 1024


def make_features(samples: int, patches: int, width: int) -> torch.Tensor:
    """Return (N, P, C) like those of like parts: patches near common prototypes, with noise of a third of their size."""
    generator = torch.Generator().manual_seed(width)
    features = torch.randn(1, patches, width, generator=generator) + torch.randn(samples, patches, width, generator=generator) / 3
    return torch.nn.functional.normalize(features, dim=2).half()


def make_set(quick: bool, samples: int = 12, reach: tuple[float | None, float | None] = (2, None)) -> Row:
    """One layer with the published widths; the method has three, and time is proportional. `reach`: as written, and with loops removed."""
    samples, widths = (4, (64, 32)) if quick else (samples, (768, 384))
    images, points = (make_features(samples, patches, width) for patches, width in zip((GRID * GRID, CENTERS), widths, strict=True))
    patch = torch.randint(GRID * GRID, (samples, CENTERS), generator=torch.Generator().manual_seed(0))
    detector: Any = mm3dad.create("muscv2", reference=True).fit()
    found = [
        Described(str(i), (224, 224), {"rgb": [images[i]], "xyz": [points[i]]}, (GRID, GRID), patch_of_center=patch[i])
        for i in range(samples)
    ]
    wide = [[images.float()], [points.float()]]

    def differ(ours: dict[str, torch.Tensor], theirs: tuple[torch.Tensor, ...]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(ours.values(), theirs, strict=True))

    source = "MuSc-V2's scoring, re-implemented from the sheet, "
    return Row(
        work="mutual scores, cross-modal enhancement and interval mean of a set (muscv2, reference=true)",
        inputs=f"{samples} samples, {GRID * GRID} patches x {widths[0]} and {CENTERS} centres x {widths[1]}, one layer, random prototypes",
        ours=partial(detector._score_set, found),
        peers=[
            Peer("as written", lambda: score_set(*wide, patch, True), source + "loops as published", differ, 2e-3, reach=reach[0]),
            Peer("loops removed", lambda: score_set(*wide, patch, False), source + "loops vectorised", differ, 2e-3, reach=reach[1]),
        ],
    )


ROWS = {"muscv2_set": make_set, "muscv2_set_60": partial(make_set, samples=60, reach=(10, 2))}
