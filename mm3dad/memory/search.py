"""Exact search for the nearest bank rows, with torch or faiss: the same rows and distances either way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm3dad.errors import MissingPackageError
from mm3dad.ops import nearest_neighbors

ROW_BLOCK = 8192
RANKED = 256  # queries whose proposed rows are in memory at a time


def nearest_in_sample(queries: Tensor, rows: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the one nearest row of each query.

    A product proposes the row, whose distance is then taken directly: |a|^2 + |b|^2 - 2ab alone loses the digits of small distances.

    Args:
        queries: (P, C) float32.
        rows: (M, C) float32, M >= 1.
        allowed: (P, M) bool, False where a row is out of reach (a window); None allows all.
    Returns:
        distances (P,) float32, infinite where nothing is allowed; indices (P,) int64.
    """
    for first in range(0, len(rows), ROW_BLOCK):
        block = rows[first : first + ROW_BLOCK]
        product = torch.addmm(block.square().sum(1), queries, block.T, alpha=-2)
        if allowed is not None:
            product.masked_fill_(~allowed[:, first : first + ROW_BLOCK], torch.inf)
        value, where = _smallest(product)
        if first == 0:
            best, index = value, where
            continue
        better = value < best
        best, index = torch.where(better, value, best), torch.where(better, where + first, index)
    distances = torch.linalg.vector_norm(queries - rows.index_select(0, index), dim=1)
    return distances if allowed is None else distances.masked_fill(best.isinf(), torch.inf), index


def _smallest(values: Tensor) -> tuple[Tensor, Tensor]:
    if values.device.type != "cpu":
        return values.min(1)
    # numpy's argmin along a contiguous row is vectorised, torch's is not.
    where = torch.from_numpy(values.numpy().argmin(1))
    return values.gather(1, where[:, None])[:, 0], where


def nearest_rows(queries: Tensor, rows: Tensor, k: int, backend: str = "torch") -> tuple[Tensor, Tensor]:
    """Find the k nearest rows of each query, exact, nearest first.

    Args:
        queries: (P, C) float32.
        rows: (M, C) float32.
        k: 1 to M.
        backend: "torch", or "faiss" (a flat index; it only proposes, distances are taken as torch takes them).
    Returns:
        distances (P, k) float32, indices (P, k) int64.
    Raises:
        ConfigError: k is out of range.
        MissingPackageError: faiss is asked for and not installed.
    """
    if backend == "torch" or not 1 <= k <= len(rows):  # torch's search refuses such a k
        return nearest_neighbors(queries, rows, k)
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError("search=faiss needs faiss; install it with: pip install faiss-cpu, or use search=torch") from error
    # Centred rows keep the digits that faiss's product form would lose far from the origin; spare candidates settle its near ties.
    center = rows.mean(0)
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add((rows - center).contiguous().cpu().numpy())
    spare = min(len(rows), k + 16)
    _, found = index.search((queries - center).contiguous().cpu().numpy(), spare)
    return rank_proposals(queries, rows, torch.from_numpy(found).to(queries.device).sort(1).values, k)


def rank_proposals(queries: Tensor, rows: Tensor, proposals: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Choose the k nearest of the rows that an index proposes to each query, by the distances themselves.

    Args:
        queries: (P, C) float32.
        rows: (M, C) float32.
        proposals: (P, n) int64, ascending, so that of equal distances the lowest row comes first; -1 stands for none.
        k: 1 to n.
    Returns:
        distances (P, k) float32 ascending, infinite where nothing was proposed, indices (P, k) int64.
    """
    parts = []
    for some, place in zip(queries.split(RANKED), proposals.split(RANKED), strict=True):
        exact = (some[:, None] - rows[place]).square_().sum(2).sqrt_().masked_fill_(place < 0, torch.inf)
        distances, order = exact.sort(dim=1, stable=True)
        parts.append((distances[:, :k], place.gather(1, order)[:, :k]))
    distances, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    return distances, indices


def merge_nearest(parts: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Keep the k nearest of several answers to the same queries; of equal distances the earlier part's.

    Merging twice is merging once: parts may be joined in groups, as long as their order stays.

    Args:
        parts: distances (P, n) ascending and indices (P, n) of each, where a part with fewer than k rows gives all of them.
        k: 1 to the rows of all parts.

    Returns:
        distances (P, k) ascending, indices (P, k) int64.
    """
    distances, indices = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    distances, order = distances.sort(dim=1, stable=True)
    return distances[:, :k].contiguous(), indices.gather(1, order)[:, :k].contiguous()
