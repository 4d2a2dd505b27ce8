"""Exact nearest neighbours in a cloud or among features."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mm3dad.errors import ShapeError
from mm3dad.ops._check import check_integer, check_rows, check_same_device
from mm3dad.ops._native import native_kernels
from mm3dad.ops.keep_smallest import keep_smallest

QUERY_BLOCK, POINT_BLOCK, PAIR_BLOCK = 1024, 8192, 1024
# Rows kept beyond k by the fast product, so that its rounding can be told from a true order.
SPARE = 16


def nearest_neighbors(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the `k` nearest points of each query: exact, nearest first, equal distances by lowest index.

    Up to three columns on the CPU the native kernel or a k-d tree answers; else blocks of a matrix product propose candidates whose
    distances are then taken directly, because |a|^2 + |b|^2 - 2ab loses all digits of a small distance between large coordinates. A row
    whose candidates cannot be told apart that way is searched again in float64. No queries x points matrix is ever held.

    Args:
        queries: (Q, D) floating, finite.
        points: (N, D) floating, finite, same unit and device.
        k: 1 to N.
    Returns:
        distances (Q, k) Euclidean, dtype of `queries`; indices (Q, k) int64 into `points`.
    Raises:
        ShapeError: not finite floating (Q, D) and (N, D) of one width and device.
        ConfigError: `k` is out of range.

    >>> distances, indices = nearest_neighbors(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [-1.0]]), 2)
    >>> indices.tolist(), distances.tolist()
    ([[1, 2]], [[1.0, 1.0]])
    """
    check_rows("points", points)
    check_rows("queries", queries, least=0)
    if queries.shape[1] != points.shape[1]:
        raise ShapeError(f"queries and points must have the same width, got {queries.shape[1]} and {points.shape[1]} columns")
    check_same_device(queries=queries, points=points)
    k = check_integer("k", k, 1, len(points), "there are only that many points")
    if not len(queries):
        return queries.new_zeros((0, k)), torch.zeros((0, k), dtype=torch.int64, device=queries.device)
    if points.shape[1] <= 3:
        queries_, points_ = queries.detach().double(), points.detach().double()
        if points.device.type != "cpu":
            distances, indices = _search_blocks(queries_, points_, k)
        elif (kernels := native_kernels("cpu", "nearest_neighbors")) is not None:
            fill = (0, 3 - points.shape[1])
            place, cloud = (torch.nn.functional.pad(rows, fill).contiguous() for rows in (queries_, points_))
            distances, indices = kernels.nearest_neighbors(place, cloud, k, torch.get_num_threads())
        else:
            distances, indices = _search_tree(queries_, points_, k)
    else:
        wide = torch.float64 if torch.float64 in (queries.dtype, points.dtype) else torch.float32
        distances, indices = _search_blocks(queries.detach().to(wide), points.detach(), k)
    return distances.to(queries.dtype), indices


def _search_tree(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from scipy.spatial import cKDTree

    tree = cKDTree(points.numpy(), balanced_tree=False, compact_nodes=False)
    wanted = min(k + 1, len(points))
    found, order = tree.query(queries.numpy(), wanted, workers=-1)
    found, order = found.reshape(len(queries), wanted), order.reshape(len(queries), wanted)
    # The tree returns equal distances in any order: sort those rows, and search again where the cut itself falls on a tie.
    tied = np.flatnonzero((found[:, 1:] == found[:, :-1]).any(axis=1))
    ranked = np.lexsort((order[tied], found[tied]), axis=1)
    order[tied] = np.take_along_axis(order[tied], ranked, axis=1)
    cut = np.flatnonzero(found[:, k - 1] == found[:, k]) if wanted > k else np.empty(0, dtype=np.int64)
    distances, indices = torch.from_numpy(found[:, :k]), torch.from_numpy(order[:, :k].astype(np.int64))
    if len(cut):
        rows = torch.from_numpy(cut)
        distances[rows], indices[rows] = _search_directly(queries[rows], points, k)
    return distances.contiguous(), indices.contiguous()


def _search_blocks(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    blocks = points.split(POINT_BLOCK)
    center = torch.stack([block.to(queries.dtype).sum(dim=0) for block in blocks]).sum(dim=0) / len(points)
    moved = queries - center
    keep = min(k + SPARE, len(points))
    # A block of points is widened and centred once, and met by every block of queries while it is in cache.
    parts = [
        (part * -2, part.new_full((len(part), keep), torch.inf), torch.zeros((len(part), keep), dtype=torch.int64, device=part.device))
        for part in moved.split(QUERY_BLOCK)
    ]
    largest = moved.new_zeros(())
    for number, block in enumerate(blocks):
        centred = block.to(queries.dtype) - center
        squares = torch.linalg.vector_norm(centred, dim=1).square_()
        largest = torch.maximum(largest, squares.max())
        parts = [(part, *keep_smallest(values, index, part @ centred.T, squares, number * POINT_BLOCK)) for part, values, index in parts]
    # Rounding of the product form, relative to the squared norms; reduced-precision products round far more coarsely.
    plain = queries.dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest"
    unit = (torch.finfo(queries.dtype).eps if plain else 2.0**-7) * (2 * math.sqrt(points.shape[1]) + 8)
    own = torch.linalg.vector_norm(moved, dim=1).square_()
    approximate, index = (torch.cat(column) for column in list(zip(*parts, strict=True))[1:])
    return _settle(queries, points, approximate + own[:, None], index, unit * (own + largest), k)


def _settle(queries: Tensor, points: Tensor, approximate: Tensor, index: Tensor, slack: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Choose the k nearest of some candidates.

    Args:
        approximate: (Q, keep) squared distances, each within `slack` (Q,) of the true one; every other point's is larger than theirs.
        index: (Q, keep) the candidates.
    """
    distances, indices = _rank_candidates(queries, points, approximate, index, slack, k)
    if index.shape[1] < len(points):
        rows = (distances[:, -1].square() >= approximate.amax(dim=1) - slack).nonzero()[:, 0]
        if len(rows):
            distances, indices = distances.clone(), indices.clone()
            again, indices[rows] = _search_directly(queries[rows].double(), points.double(), k)
            distances[rows] = again.to(distances.dtype)
    return distances, indices


def _rank_candidates(queries: Tensor, points: Tensor, approximate: Tensor, index: Tensor, slack: Tensor, k: int) -> tuple[Tensor, Tensor]:
    kernels = native_kernels(queries.device.type, "rank_candidates")
    if kernels is None:
        return _rank_reference(queries, points, approximate, index, slack, k)
    threads = torch.get_num_threads()
    if points.dtype == queries.dtype:
        return kernels.rank_candidates(queries.contiguous(), points.contiguous(), approximate, index, slack, k, threads)
    # Only the candidates of a block are widened, so that a bank in half precision stays one.
    parts = []
    blocks = (rows.split(QUERY_BLOCK) for rows in (queries, approximate, index, slack))
    for query, guess, candidates, room in zip(*blocks, strict=True):
        rows, place = candidates.unique(return_inverse=True)
        found, order = kernels.rank_candidates(query.contiguous(), points[rows].to(query.dtype), guess, place, room, k, threads)
        parts.append((found, rows[order]))
    distances, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    return distances, indices


def _rank_reference(queries: Tensor, points: Tensor, approximate: Tensor, index: Tensor, slack: Tensor, k: int) -> tuple[Tensor, Tensor]:
    index, order = index.sort(dim=1)
    approximate = approximate.gather(1, order)
    # Whatever is two roundings beyond the k-th cannot be among the k nearest: its distance need not be taken.
    limit = approximate.kthvalue(k, dim=1).values + 2 * slack
    row, column = (approximate <= limit[:, None]).nonzero(as_tuple=True)
    exact = torch.full_like(approximate, torch.inf)
    exact[row, column] = _distances(queries, points, row, index[row, column])
    exact, order = exact.sort(dim=1, stable=True)
    return exact[:, :k], index.gather(1, order)[:, :k]


def _distances(queries: Tensor, points: Tensor, row: Tensor, index: Tensor) -> Tensor:
    pairs = zip(row.split(PAIR_BLOCK), index.split(PAIR_BLOCK), strict=True)
    return torch.cat([(queries[i] - points[j].to(queries.dtype)).square_().sum(dim=1).sqrt_() for i, j in pairs])


def _search_directly(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # Every distance by differences; blocks of about 2^23 entries.
    parts = [_select_smallest(torch.cdist(block, points, compute_mode="donot_use_mm_for_euclid_dist"), k)
             for block in queries.split(max(1, 2**23 // len(points)))]  # fmt: skip
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _select_smallest(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    limit = distances.topk(k, dim=1, largest=False).values.amax(dim=1, keepdim=True)
    below, equal = distances < limit, distances == limit
    room = k - below.sum(dim=1, keepdim=True)
    index = (below | (equal & (equal.cumsum(dim=1) <= room))).nonzero()[:, 1].view(-1, k)
    values, order = distances.gather(1, index).sort(dim=1, stable=True)
    return values, index.gather(1, order)
