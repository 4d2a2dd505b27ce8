"""Clouds on which a kernel can go wrong."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("random", "surface", "lattice", "duplicates", "collinear", "offset", "one place", "outlier", "tiny numbers")


def make_cloud(kind: str, number: int, seed: int = 0) -> Tensor:
    """A float64 cloud (number, 3): equal distances on the lattice, equal points among duplicates, 1e4 m away for offset."""
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.rand(number, 3, generator=generator, dtype=torch.float64)
    match kind:
        case "surface":
            cloud[:, 2] = 0.1 * torch.sin(9 * cloud[:, 0]) * torch.cos(7 * cloud[:, 1])
        case "lattice":
            cloud = (cloud * 4).round()
        case "duplicates":
            cloud = cloud[torch.randint(0, max(1, number // 3), (number,), generator=generator)]
        case "collinear":
            cloud = cloud[:, :1] * torch.tensor([[1.0, 2.0, -3.0]])
        case "offset":
            cloud = (cloud + 1e4).float().double()
        case "one place":
            cloud = cloud[:1].expand(number, 3).clone()
        case "outlier":
            cloud[0] = 1e6
        case "tiny numbers":
            cloud = cloud * 1e-9
    return cloud
