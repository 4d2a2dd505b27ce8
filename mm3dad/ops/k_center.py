"""Exact greedy k-centre: the one algorithm behind farthest-point sampling and the coreset.

Plain greedy compares every row with every chosen row. A row's distance to the chosen set only ever falls, so an old value stays an
upper bound: rows whose bound is already below the current best need no work (lazy greedy; Minoux 1978). The native kernel
(extensions/csrc/k_center.cpp) also uses the triangle inequality: a new row takes rows only from clusters nearer than twice their radius.
It looks at the rows for picks in batches: the farthest row is the next pick for certain if no pick of the batch reaches it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mm3dad.ops._check import check_integer, check_rows
from mm3dad.ops._native import native_kernels

# Rows refreshed together: large enough for the matrix product to pay, small enough to stay in cache while rows are picked from it.
BLOCK = 512
# Up to this width a slab along one axis cuts the work down further than stale bounds do.
NARROW = 3
# Up to so many distances the plain kernel is done before the other has looked at the rows.
FEW = 2**19


def pick_centers(rows: Tensor, count: int, start: int = 0, name: str = "rows") -> Tensor:
    """Pick `count` rows, each the farthest from those before it; ties go to the lowest index, no row comes twice.

    Distances are Euclidean, from direct differences in float64, so that near ties fall the same way on every machine. The native form
    works on about 300 bytes a row beside the rows in float32, or on 2 D + 16 where the rows have no structure to make use of.

    Args:
        rows: (N, D) floating, finite.
        count: number of picks, 1 to N.
        start: index of the first pick.
        name: what the caller calls the rows, for the error messages.
    Returns:
        (count,) int64 in the order of picking, on the device of `rows`.
    Raises:
        ShapeError: `rows` is not a finite floating (N, D) tensor.
        ConfigError: `count` or `start` is out of range.
    """
    check_rows(name, rows)
    count = check_integer("count", count, 1, len(rows), f"{name} has only that many rows")
    start = check_integer("start", start, 0, len(rows) - 1)
    if rows.device.type != "cpu":
        return pick_centers_plain(rows, count, start)
    kernels = native_kernels("cpu", "k_center")
    single = rows.detach().float().contiguous()
    # The kernel reads float32; rows that need more keep to the reference.
    if kernels is None or rows.shape[1] <= NARROW or (rows.dtype == torch.float64 and not torch.equal(single.double(), rows.detach())):
        return pick_centers_reference(rows, count, start)
    if len(rows) * count <= FEW:
        return kernels.k_center_plain(single, count, start, 1)
    return kernels.k_center(single, count, start, torch.get_num_threads())


def pick_centers_reference(rows: Tensor, count: int, start: int = 0) -> Tensor:
    """Do the same in numpy, unchecked, on the CPU."""
    pick = _pick_by_slab if rows.shape[1] <= NARROW else _pick_lazily
    return torch.from_numpy(pick(rows.detach().numpy(), count, start))


def pick_centers_plain(rows: Tensor, count: int, start: int = 0) -> Tensor:
    """Do the same, row against row and unchecked: no host round trip, so the better form on an accelerator."""
    rows = rows.double()
    chosen = torch.full((count,), start, dtype=torch.int64, device=rows.device)
    index = torch.arange(len(rows), device=rows.device)
    distance = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    for step in range(1, count):
        last = chosen[step - 1 : step]
        to_last = torch.cdist(rows, rows[last], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
        distance = torch.minimum(distance, to_last).index_fill_(0, last, -torch.inf)
        # argmax may return any of several equal maxima; the smallest of their indices is the one asked for.
        chosen[step] = torch.where(distance == distance.max(), index, len(rows)).min()
    return chosen


def _pick_by_slab(rows: NDArray[np.floating], count: int, start: int) -> NDArray[np.int64]:
    # Every row is within `reach` of a chosen one, so a new one can only matter to rows that close: a slab along the widest axis.
    axis = int(np.ptp(rows, axis=0).argmax())
    order = np.argsort(rows[:, axis], kind="stable")
    columns = np.ascontiguousarray(rows[order].T, dtype=np.float64)
    distance = np.full(len(rows), np.inf)
    chosen = np.empty(count, dtype=np.int64)
    position, reach = int(np.flatnonzero(order == start)[0]), np.inf
    for step in range(count):
        chosen[step] = order[position]
        center = columns[:, position]
        low = columns[axis].searchsorted(center[axis] - reach, side="left")
        high = columns[axis].searchsorted(center[axis] + reach, side="right")
        squared = np.square(columns[:, low:high] - center[:, None]).sum(axis=0)
        np.minimum(distance[low:high], squared, out=distance[low:high])
        distance[position] = -np.inf
        largest = distance.max()
        equal = np.flatnonzero(distance == largest)
        position = int(equal[order[equal].argmin()])
        reach = np.sqrt(max(largest, 0.0)) * (1 + 1e-9)
    return chosen


def _pick_lazily(rows: NDArray[np.floating], count: int, start: int) -> NDArray[np.int64]:
    total, width = rows.shape
    offset = rows.mean(axis=0, dtype=np.float64)
    centers = np.empty((count, width))
    chosen = np.empty(count, dtype=np.int64)
    chosen[0], centers[0], done = start, rows[start], 1
    bound = np.full(total, np.inf)
    bound[start] = -np.inf
    seen = np.zeros(total, dtype=np.int64)  # how many of the chosen rows a bound already accounts for
    while done < count:
        block, rival, rival_index = _highest(bound, min(BLOCK, total - done))
        points = rows[block].astype(np.float64, copy=False)
        distance = _refresh(points, bound[block], seen[block], centers[:done], offset)
        while done < count:
            best = int(distance.argmax())
            # A row outside may still be ahead: its bound is larger, or equal at a lower index.
            if distance[best] < rival or (distance[best] == rival and block[best] > rival_index) or distance[best] == -np.inf:
                break
            chosen[done], centers[done] = block[best], points[best]
            difference = points - centers[done]
            done += 1
            np.minimum(distance, np.einsum("ij,ij->i", difference, difference), out=distance)
            distance[best] = -np.inf
        bound[block], seen[block] = distance, done
    return chosen


def _highest(bound: NDArray[np.float64], count: int) -> tuple[NDArray[np.int64], float, int]:
    """Return the `count` rows of highest bound (lowest index first among equals), and bound and index of the first row left out."""
    if count >= len(bound):
        return np.arange(len(bound)), -np.inf, -1
    ordered = np.partition(bound, (len(bound) - count - 1, len(bound) - count))
    least, runner_up = ordered[len(bound) - count], ordered[len(bound) - count - 1]
    above, equal = np.flatnonzero(bound > least), np.flatnonzero(bound == least)
    room = count - len(above)
    block = np.sort(np.concatenate([above, equal[:room]]))
    if room < len(equal):
        return block, float(least), int(equal[room])
    return block, float(runner_up), int((bound == runner_up).argmax())


def _refresh(
    points: NDArray[np.float64],
    bound: NDArray[np.float64],
    seen: NDArray[np.int64],
    centers: NDArray[np.float64],
    offset: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Bring squared distances up to date with the centres that each row has not seen yet."""
    fresh = bound.copy()
    # Rows of like age share one product; grouping by the power of two wastes at most half of it.
    age = len(centers) - seen
    group = np.frexp(age.astype(np.float64))[1]
    for level in np.unique(group[age > 0]):
        member = np.flatnonzero((group == level) & (age > 0))
        unseen = centers[len(centers) - int(age[member].max()) :]
        fresh[member] = np.minimum(fresh[member], _nearest_squared(points[member], unseen, offset))
    return fresh


def _nearest_squared(points: NDArray[np.float64], centers: NDArray[np.float64], offset: NDArray[np.float64]) -> NDArray[np.float64]:
    # The product only finds the nearest centre; its distance is then taken directly, since |a|^2 + |b|^2 - 2ab cancels.
    centred = centers - offset
    half = 0.5 * np.einsum("ij,ij->i", centred, centred) - (points - offset) @ centred.T
    difference = points - centers[half.argmin(axis=1)]
    return np.einsum("ij,ij->i", difference, difference)
