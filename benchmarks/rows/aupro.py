"""Exact AUPRO beside the published 100-threshold code and MuSc-V2's."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.harness import Growth, Peer, Row, Run
from benchmarks.peers import aupro as peers
from mm3dad.metrics import aupro, aupro_musc

SHEET = "re-implemented from the sheet, loops as published"


def make_maps(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth noise (N, H, W) float32 and masks: two of three samples have one to three defects, which the maps show faintly."""
    random = np.random.default_rng(0)
    maps = np.stack([gaussian_filter(random.standard_normal((size, size)).astype(np.float32), 4) for _ in range(count)])
    masks = np.zeros(maps.shape, bool)
    y, x = np.mgrid[:size, :size]
    for number, mask in enumerate(masks):
        for _ in range(0 if number % 3 == 0 else 1 + number % 3):
            row, column = random.integers(0, size, 2)
            mask |= (y - row) ** 2 + (x - column) ** 2 < random.integers(3, size // 10) ** 2
    return maps + masks * np.float32(0.12), masks


def make_row(quick: bool) -> Row:
    """60 maps of 224 x 224."""
    count, size = (6, 64) if quick else (60, 224)
    maps, masks = make_maps(count, size)

    def differ(_ours: float, theirs: float, own: float) -> float:
        return abs(own - theirs)

    published, stretched = aupro(maps, masks, thresholds=100), aupro_musc(maps, masks)
    return Row(
        work="exact AUPRO at a false-positive rate of 0.3",
        inputs=f"{count} maps of {size} x {size} float32, smooth noise; faint defects in {sum(m.any() for m in masks)} of them",
        ours=partial(aupro, maps, masks),
        peers=[
            Peer("published, 100 thresholds", partial(peers.published, maps, masks), SHEET, partial(differ, own=published), 1e-9, 1),
            Peer(
                "the same vectorised",
                partial(peers.published_in_numpy, maps, masks),
                "re-implemented from the sheet, one lookup a region",
                partial(differ, own=published),
                1e-9,
                1,
            ),
            Peer("MuSc-V2", partial(peers.muscv2, maps, masks), SHEET, partial(differ, own=stretched), 1e-6, 1),
        ],
        facts=lambda ours, theirs: {
            "exact value": ours,
            "what the peers give (other definitions; each is compared with our function of that definition)": str(theirs),
        },
        growth=Growth("maps", [2, 4, 6] if quick else [15, 30, 60, 120], partial(_grow, size)),
    )


def _grow(size: int, _side: str, count: int) -> Run:
    return partial(aupro, *make_maps(count, size))


ROWS = {"aupro": make_row}
