"""The hypergraph of one image: which of its patches belong to which semantic group.

A hypergraph is its incidence matrix (N, K): which of N patches belong to which of K hyperedges. The graph's (N, N) weights are never
formed.
Source: CIF, "Commonality in Few" (AAAI 2026, arXiv 2511.05966); retrieval sheet, part 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mm3dad.errors import ConfigError, DataError, ShapeError


@dataclass(frozen=True)
class Hypergraph:
    """The hypergraph of one image.

    Args:
        incidence: (N, K) bool, which patch is in which hyperedge; rows of background patches are empty.
        ids: (N,) int64, the one hyperedge a patch is searched and remembered with, -1 on background.
    """

    incidence: Tensor
    ids: Tensor


def find_centroids(features: Tensor, count: int, seed: int = 0, rounds: int = 50) -> Tensor:
    """Find `count` centroids of features by k-means: k-means++ seeding, Lloyd's rounds.

    Args:
        features: (N, C) floating, N >= 1.
        count: K; where fewer features differ, fewer centroids come back.
        seed: of the seeding; the result depends on nothing else.
        rounds: most of Lloyd's rounds.
    Returns:
        (K, C), dtype of `features`.
    Raises:
        ShapeError: no features, or not (N, C).
        ConfigError: count below 1.
    """
    if features.ndim != 2 or not len(features):
        raise ShapeError(f"features must be (N, C) with N >= 1, got {tuple(features.shape)}; is there any foreground?")
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}; 4 is published for MVTec 3D-AD")
    rows = features.double()
    generator = torch.Generator().manual_seed(seed)
    centroids = rows[torch.randint(len(rows), (1,), generator=generator).to(rows.device)]
    spread = float((rows - rows.mean(0)).square().sum(1).mean())
    while len(centroids) < count:
        gap = torch.cdist(rows, centroids).square().amin(1)
        if float(gap.max()) <= 1e-12 * spread:
            break
        pick = torch.multinomial(gap.cpu(), 1, generator=generator).to(rows.device)
        centroids = torch.cat([centroids, rows[pick]])
    owner = torch.full((len(rows),), -1, device=rows.device)
    for _ in range(rounds):
        found = torch.cdist(rows, centroids).argmin(1)
        if torch.equal(found, owner):
            break
        owner = found
        size = torch.bincount(owner, minlength=len(centroids))
        total = torch.zeros_like(centroids).index_add_(0, owner, rows)
        centroids = torch.where(size[:, None] > 0, total / size.clamp_min(1)[:, None], centroids)
    return centroids.to(features.dtype)


def find_incidence(features: Tensor, centroids: Tensor, foreground: Tensor, threshold: float = 0.9) -> tuple[Tensor, Tensor]:
    """Join each foreground patch with the centroids that are nearly as similar to it as its best one.

    Cosines to the centroids are stretched to [0, 1] patch by patch; those of at least `threshold` count.

    Args:
        features: (N, C) floating.
        centroids: (K, C) floating.
        foreground: (N,) bool.
        threshold: in (0, 1]; 1 joins with the best centroid alone.
    Returns:
        incidence (N, K) bool, background rows empty, every other row with an entry; the most similar centroid (N,) int64, -1 on background.
    Raises:
        ShapeError: shapes do not fit together.
        ConfigError: threshold out of range.
    """
    if features.ndim != 2 or centroids.shape[1:] != features.shape[1:] or foreground.shape != features.shape[:1]:
        raise ShapeError(
            "features (N, C), centroids (K, C) and foreground (N,) must fit together, got "
            f"{tuple(features.shape)}, {tuple(centroids.shape)} and {tuple(foreground.shape)}"
        )
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold must lie in (0, 1], got {threshold}; 0.9 is published")
    cosine = normalize(features, dim=1) @ normalize(centroids, dim=1).T
    low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
    stretched = (cosine - low) / torch.where(high > low, high - low, 1e-8)
    best = cosine.argmax(1)
    incidence = stretched >= threshold
    # With one centroid, or equal ones, nothing stretches; the best still counts.
    incidence.scatter_(1, best[:, None], True)
    return incidence & foreground[:, None], torch.where(foreground, best, -1)


def first_hyperedge(incidence: Tensor) -> Tensor:
    """Return the first hyperedge of each patch (N,), -1 where it has none: the one that the published code takes, not the most similar."""
    return torch.where(incidence.any(1), incidence.int().argmax(1), -1)


def build_hypergraph(
    features: Tensor, foreground: Tensor, count: int, threshold: float = 0.9, seed: int = 0, first: bool = False
) -> Hypergraph:
    """Group the foreground patches of one image by the likeness of their features (SAHC).

    Args:
        features: (N, C) floating.
        foreground: (N,) bool, at least one True.
        count: hyperedges K.
        threshold: of the stretched cosine.
        seed: of the k-means seeding.
        first: a patch with several hyperedges counts to the first (the published code) instead of the most similar one.
    Raises:
        DataError: no foreground.
    """
    if not bool(foreground.any()):
        raise DataError("no patch is foreground; check the point cloud and its mask of missing points")
    incidence, best = find_incidence(features, find_centroids(features[foreground], count, seed), foreground, threshold)
    return Hypergraph(incidence, first_hyperedge(incidence) if first else best)


def hyperedge_features(features: Tensor, incidence: Tensor) -> Tensor:
    """Return one feature per hyperedge, D_e^-1 H^T D_v^-1/2 X: (K, C); the mean of the members where each has one hyperedge."""
    weights = incidence.to(features.dtype)
    member = weights.sum(1).clamp_min(1e-12).rsqrt()
    size = weights.sum(0).clamp_min(1e-12)
    return (weights.T @ (member[:, None] * features)) / size[:, None]
