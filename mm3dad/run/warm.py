"""`warm_up`: the first part on the line is not the one that waits for networks and libraries to be loaded."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mm3dad.types import Meta, Sample

if TYPE_CHECKING:
    from mm3dad.methods import Detector

SIDE = 128  # pixels of the made-up part


def warm_up(detector: Detector) -> None:
    """Score a made-up part; whether the detector can say something of it does not matter."""
    with contextlib.suppress(Exception):  # a method that takes parts of one size only fails in its own way, and must serve nevertheless
        detector.predict(_make_part())


def _make_part() -> Sample:
    """A speckled dome of 10 cm, 0.5 m in front of the sensor."""
    import torch

    y, x = torch.meshgrid(*[torch.linspace(-0.05, 0.05, SIDE)] * 2, indexing="ij")
    xyz = torch.stack([x, y, 0.5 - 0.2 * (0.005 - x**2 - y**2)])
    rgb = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return Sample(rgb, xyz, torch.ones(SIDE, SIDE, dtype=torch.bool), meta=Meta("warm-up"))
