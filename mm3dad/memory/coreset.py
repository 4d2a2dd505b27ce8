"""Coreset: the few rows that stand for a whole bank."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops.k_center import pick_centers


def select_coreset(features: Tensor, count: int, start: int = 0) -> Tensor:
    """Pick the rows whose farthest neighbour in the bank is nearest: the exact greedy k-centre choice of PatchCore.

    Exact means the picks of the plain algorithm in float64, without a random projection; rows that cannot win are merely not
    compared again. Equal distances go to the lowest index; duplicates are picked last.
    Source: Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, algorithm 1.

    Args:
        features: (N, C) floating, finite; any unit, distances are Euclidean.
        count: number of rows to keep, 1 to N.
        start: index of the first pick.
    Returns:
        (count,) int64 indices into `features`, in the order of picking, on the same device.
    Raises:
        ShapeError: `features` is not a finite floating (N, C) tensor.
        ConfigError: `count` or `start` is out of range.
    """
    return pick_centers(features, count, start, name="features")


def select_from_anchor(features: Tensor, count: int, anchor: Tensor) -> Tensor:
    """Pick rows greedily by the distance to what is chosen, which starts at `anchor` instead of at a first row.

    This is the loop of PatchCore's published samplers: the highest anchor wins, and each anchor becomes the smaller of itself and the
    distance to the winner. The exact sampler starts at `spread_anchor`, the approximate one at `sampled_anchor`; both mean that the
    first picks are the globally farthest rows. `select_coreset` is the plain k-centre choice.
    Source: patchcore-inspection, as the golden README describes it.

    Args:
        features: (N, C) floating, finite.
        count: rows to keep, 1 to N.
        anchor: (N,) floating, starting distances.
    Returns:
        (count,) int64, in the order of picking. Equal distances go to the lowest index.
    Raises:
        ShapeError: the shapes do not fit.
        ConfigError: `count` is out of range.
    """
    if features.ndim != 2 or not features.is_floating_point() or anchor.shape != features.shape[:1]:
        raise ShapeError(f"features must be floating (N, C) and anchor (N,), got {tuple(features.shape)} and {tuple(anchor.shape)}")
    if not 1 <= count <= len(features):
        raise ConfigError(f"count must lie in 1 to {len(features)}, the rows there are, got {count}")
    rows, reach = features.double(), anchor.double().clone()
    picks = []
    for _ in range(count):
        pick = int(reach.argmax())
        picks.append(pick)
        torch.minimum(reach, torch.linalg.vector_norm(rows - rows[pick], dim=1), out=reach)
    return torch.tensor(picks, device=features.device)


def spread_anchor(features: Tensor) -> Tensor:
    """Return (N,) float64: the root of each row's summed squared distances to all rows, in closed form, never N x N."""
    centred = features.double() - features.double().mean(0)
    squares = centred.square().sum(1)
    return (len(features) * squares + squares.sum()).sqrt()


def sampled_anchor(features: Tensor, starts: Tensor) -> Tensor:
    """Return (N,) float64: each row's mean distance to the rows `starts` (k,), drawn by the caller."""
    rows = features.double()
    return torch.stack([torch.linalg.vector_norm(rows - rows[int(start)], dim=1) for start in starts]).mean(0)


def projection_size(rows: int, distortion: float = 0.9) -> int:
    """Return how many random dimensions keep the squared distances of `rows` rows within `distortion` (Johnson and Lindenstrauss).

    BTF and M3DM choose their projection by it; where the features have fewer channels they are not projected (multimodal sheet, 3).
    """
    return max(1, int(4 * math.log(max(rows, 2)) / (distortion**2 / 2 - distortion**3 / 3)))


def project_rows(features: Tensor, size: int, seed: int = 0) -> Tensor:
    """Project rows on seeded sparse random signs, so that choosing a coreset costs less; rows that are narrow already stay.

    One entry in sqrt(C) is set, to plus or minus one unit, and squared distances are kept on average. Only the choice of rows sees
    it; the bank keeps the full features.

    Args:
        features: (N, C) floating.
        size: dimensions wanted.
        seed: of the signs. The published code draws them anew each time.
    Returns:
        (N, size), or `features` itself where C <= size.
    """
    channels = features.shape[1]
    if channels <= size:
        return features
    generator = torch.Generator().manual_seed(seed)
    density = channels**-0.5
    chosen = torch.rand(channels, size, generator=generator) < density
    signs = torch.randint(0, 2, (channels, size), generator=generator) * 2 - 1
    unit = (density * size) ** -0.5
    return features @ (signs * chosen).to(features) * unit
