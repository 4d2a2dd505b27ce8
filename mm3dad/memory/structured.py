"""A memory ordered by the semantic groups of images: how it fills, how it is thinned, how it is searched.

Source: CIF, "Commonality in Few" (AAAI 2026, arXiv 2511.05966); retrieval sheet, part 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mm3dad.errors import DataError
from mm3dad.memory.coreset import select_coreset
from mm3dad.ops import nearest_neighbors

# Distance the published search gives where the chosen hyperedges hold no row.
MISSED = 1e6


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
