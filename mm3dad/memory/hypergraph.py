"""Hypergraphs of image patches: one image's semantic groups, a memory ordered by them, and message passing between both.

A hypergraph is its incidence matrix (N, K): which of N patches belong to which of K hyperedges. Everything here works on that thin
matrix; the graph's (N, N) weights are never formed.
Source: CIF, "Commonality in Few" (AAAI 2026, arXiv 2511.05966); retrieval sheet, part 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.memory.coreset import select_coreset
from mm3dad.ops import nearest_neighbors

# Bank rows compared with all test patches at once.
ROW_BLOCK = 4096
# Distance the published search gives where the chosen hyperedges hold no row.
MISSED = 1e6


@dataclass(frozen=True)
class Hypergraph:
    """The hypergraph of one image.

    Args:
        incidence: (N, K) bool, which patch is in which hyperedge; rows of background patches are empty.
        ids: (N,) int64, the one hyperedge a patch is searched and remembered with, -1 on background.
    """

    incidence: Tensor
    ids: Tensor


@dataclass(frozen=True)
class HypergraphMemory:
    """Patch features of normal samples, each in one hyperedge.

    Args:
        rows: (A, C) float32, or half precision once thinned.
        ids: (A,) int64, the hyperedge of each row.
        hyperedges: (K, C) float32, one feature per hyperedge.
    """

    rows: Tensor
    ids: Tensor
    hyperedges: Tensor


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


def add_shot(memory: HypergraphMemory | None, features: Tensor, ids: Tensor, hyperedges: Tensor, tidy: bool = True) -> HypergraphMemory:
    """Put the patches of one more normal image into the memory.

    A new hyperedge goes to the memory's most similar one (cosine; several may go to one), then each hyperedge's feature is the mean
    of its rows. Patches without a hyperedge stay out.

    Args:
        memory: what is there, None for the first image.
        features: (N, C) floating.
        ids: (N,) int64, the hyperedge of each patch, -1 for none.
        hyperedges: (K, C), the image's hyperedge features.
        tidy: a hyperedge left without a row is dropped and the others renumbered. False keeps it, with zeros for a feature: a search
            may then choose it and find nothing, as in the published code.
    Raises:
        DataError: no patch has a hyperedge.
    """
    inside = ids >= 0
    if not bool(inside.any()):
        raise DataError("no patch of this sample is foreground; check the point cloud and its mask of missing points")
    rows, own = features[inside], ids[inside]
    if memory is not None:
        match = (normalize(hyperedges, dim=1) @ normalize(memory.hyperedges, dim=1).T).argmax(1)
        rows, own = torch.cat([memory.rows, rows]), torch.cat([memory.ids, match[own]])
        size = torch.bincount(own, minlength=len(memory.hyperedges))
        total = rows.new_zeros(len(size), rows.shape[1]).index_add_(0, own, rows)
        hyperedges = total / size.clamp_min(1)[:, None]
    if not tidy:
        return HypergraphMemory(rows, own, hyperedges)
    known, numbers = own.unique(return_inverse=True)
    return HypergraphMemory(rows, numbers, hyperedges[known])


def hyperedge_quotas(ids: Tensor, target: int) -> dict[int, int]:
    """Return how many rows each hyperedge keeps of `target`: its share, rounded, at least 1 and at most what it has."""
    known, size = ids.unique(return_counts=True)
    return {
        int(edge): max(1, min(int(count), round(float(count) / len(ids) * target)))
        for edge, count in zip(known.tolist(), size.tolist(), strict=True)
    }


def sample_memory(memory: HypergraphMemory, target: int, start: int = 0) -> HypergraphMemory:
    """Thin the memory, hyperedge by hyperedge: each keeps a k-centre choice of its share of `target` rows.

    Args:
        memory: at least one row.
        target: rows wanted in all; a hyperedge keeps at least one.
        start: first pick of each choice, modulo the rows. The published code starts at random and leaves the start itself out.
    Returns:
        the thinned memory, rows in half precision.
    """
    kept = []
    for edge, quota in hyperedge_quotas(memory.ids, target).items():
        member = (memory.ids == edge).nonzero()[:, 0]
        rows = memory.rows[member].float()
        chosen = one_center(rows) if quota == 1 else select_coreset(rows, quota, start % len(member))
        kept.append(member[chosen])
    index = torch.cat(kept)
    return HypergraphMemory(memory.rows[index].half(), memory.ids[index], memory.hyperedges)


def one_center(rows: Tensor) -> Tensor:
    """Return the row (1,) whose farthest other row is nearest."""
    farthest = torch.cat([torch.cdist(block, rows, compute_mode="donot_use_mm_for_euclid_dist").amax(1) for block in rows.split(512)])
    return farthest.argmin()[None]


def cross_matches(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return each patch's bank row of highest cosine (N,), and each bank row's patch (A,); the (N, A) cosines come in blocks."""
    patches = normalize(features, dim=1)
    best = patches.new_full((len(patches),), -torch.inf)
    row = torch.zeros(len(patches), dtype=torch.int64, device=features.device)
    back = []
    for first in range(0, len(rows), ROW_BLOCK):
        cosine = patches @ normalize(rows[first : first + ROW_BLOCK], dim=1).T
        value, where = cosine.max(1)
        row, best = torch.where(value > best, where + first, row), torch.maximum(best, value)
        back.append(cosine.argmax(0))
    return row, torch.cat(back)


def pass_messages(features: Tensor, incidence: Tensor, memory: HypergraphMemory, loops: int = 1, alpha: float = 0.9) -> Tensor:
    """Smooth a test image's features over the joint hypergraph of its patches and the memory (Bi-TF-MP).

    Beside the hyperedges of image and memory, every patch is joined with its most similar row and every row with its most similar
    patch. With W = H D_e^-1 H^T and P = D^-1/2 (W + I) D^-1/2, the result is S X with
    S = alpha * sum_{l < loops} (1 - alpha)^l P^l + (1 - alpha)^loops P^loops, for the patches. H stays factored, so a step costs
    (N + A) (K + 2) C operations instead of (N + A)^2 C.

    Args:
        features: (N, C) floating test patches.
        incidence: (N, K) bool.
        memory: A rows of C channels.
        loops: L >= 0 steps (1 is published).
        alpha: in [0, 1], share of a feature that stays; 1 changes nothing.
    Returns:
        (N, C), dtype of `features`.
    Raises:
        ShapeError: the widths differ.
        ConfigError: loops or alpha out of range.
    """
    if features.ndim != 2 or memory.rows.shape[1:] != features.shape[1:] or incidence.shape[:1] != features.shape[:1]:
        raise ShapeError(
            "features (N, C), incidence (N, K) and bank rows (A, C) must fit together, got "
            f"{tuple(features.shape)}, {tuple(incidence.shape)} and {tuple(memory.rows.shape)}"
        )
    if loops < 0 or not 0 <= alpha <= 1:
        raise ConfigError(f"loops must be >= 0 and alpha lie in [0, 1], got {loops} and {alpha}; 1 and 0.9 are published")
    N, rows = len(features), memory.rows.to(features.dtype)
    own = incidence.to(features.dtype)
    size = own.sum(0).clamp_min(1)
    known, ids, members = memory.ids.unique(return_inverse=True, return_counts=True)
    row, patch = cross_matches(features, rows)
    # The row sums of W are the numbers of hyperedges a node is in, since each hyperedge hands out what it takes in.
    degree = torch.ones(N + len(rows), dtype=features.dtype, device=features.device)
    degree[:N] += own.sum(1) + 1 + torch.bincount(patch, minlength=N)
    degree[N:] += 2 + torch.bincount(row, minlength=len(rows))
    scale = degree.rsqrt()[:, None]

    def step(nodes: Tensor) -> Tensor:
        nodes = nodes * scale
        test, bank = nodes[:N], nodes[N:]
        pooled = torch.zeros(len(known), nodes.shape[1], dtype=nodes.dtype, device=nodes.device).index_add_(0, ids, bank)
        new_test = test + own @ ((own.T @ test) / size[:, None])
        new_bank = bank + (pooled / members[:, None])[ids]
        for left, right in ((torch.arange(N, device=row.device), row), (patch, torch.arange(len(rows), device=row.device))):
            half = (test[left] + bank[right]) / 2
            new_test = new_test.index_add(0, left, half)
            new_bank = new_bank.index_add(0, right, half)
        return torch.cat([new_test, new_bank]) * scale

    nodes = torch.cat([features, rows])
    total, weight = torch.zeros_like(features), 1.0
    for _ in range(loops):
        total += alpha * weight * nodes[:N]
        nodes, weight = step(nodes), weight * (1 - alpha)
    return total + weight * nodes[:N]


def search_hyperedges(
    features: Tensor, ids: Tensor, hyperedges: Tensor, memory: HypergraphMemory, top: int = 3, missed: float | None = None
) -> Tensor:
    """Distance of each patch to the nearest row in the memory's hyperedges that resemble its own hyperedge (HGMS).

    Args:
        features: (N, C) floating.
        ids: (N,) int64, the hyperedge of each patch, -1 on background.
        hyperedges: (K, C), features of the image's hyperedges.
        memory: A rows.
        top: number of the memory's hyperedges to look into, clamped to those there are.
        missed: distance where those hold no row; None searches the whole memory then.
    Returns:
        (N,), 0 on background.
    """
    cosine = normalize(hyperedges, dim=1) @ normalize(memory.hyperedges, dim=1).T
    near = cosine.topk(min(top, cosine.shape[1]), dim=1).indices
    scores = features.new_zeros(len(features))
    for edge in ids[ids >= 0].unique().tolist():
        member = ids == edge
        allowed = torch.isin(memory.ids, near[edge])
        if not bool(allowed.any()):
            if missed is not None:
                scores[member] = missed
                continue
            allowed = torch.ones_like(allowed)
        scores[member] = nearest_neighbors(features[member], memory.rows[allowed].to(features.dtype), 1)[0][:, 0]
    return scores
