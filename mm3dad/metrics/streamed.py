"""Pixel metrics of maps that are read when they are needed: the same exact numbers as from all pixels at once, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mm3dad.errors import ShapeError
from mm3dad.metrics._ranking import ArrayLike, Ranking, check_pair
from mm3dad.metrics.aupro import weigh_pixels
from mm3dad.metrics.bundle import measure_pixels

Read = Callable[[int], tuple[ArrayLike, ArrayLike]]
HALF = 1 << 16


def pixel_metrics_streamed(read: Read, count: int) -> dict[str, Any]:
    """Return what `pixel_metrics` returns, of maps that `read` gives one by one, three times over.

    Memory is that of one map and of the defect pixels, which are few: each metric can change only at the score of one of them, so the
    normal pixels need only be counted between these scores. The published AUPRO also asks for scores at given ranks among the normal
    pixels; they are found exactly by counting the upper, then the lower halves of their bits.

    Args:
        read: position -> (map (H, W) finite float32 scores, mask (H, W)); the same each time.
        count: number of samples, at least 1.

    Raises:
        ShapeError, DataError: the input itself is wrong; missing defects are a note, no error.
    """
    if count < 1:
        raise ShapeError("pixel metrics need at least one map, got none; check the test set")
    return measure_pixels(rank_streamed(read, count))


def rank_streamed(read: Read, count: int) -> Ranking:
    """Rank the pixels of maps that are read one by one; `negatives` gives single ranks only."""
    found, shares = [], []
    for value, mask in _pairs(read, count):
        found.append(value[mask])
        shares.append(weigh_pixels(mask))
    positives, weights = np.concatenate(found), np.concatenate(shares)
    order = np.argsort(positives)
    positives, weights = positives[order], weights[order]
    levels, place = np.unique(positives, return_inverse=True)
    beyond, at_or_beyond = np.zeros(len(levels) + 1, dtype=np.int64), np.zeros(len(levels) + 1, dtype=np.int64)
    for normal in _normals(read, count):
        normal.sort()
        _count(beyond, np.searchsorted(levels, normal, side="left"))
        _count(at_or_beyond, np.searchsorted(levels, normal, side="right"))
    above, reached = (np.cumsum(counts[::-1])[::-1][1:][place] for counts in (beyond, at_or_beyond))
    total = weights.sum()
    return Ranking(_Ranks(read, count, int(beyond.sum())), positives, weights / total if total else weights, above, reached)


def _count(counts: np.ndarray, places: np.ndarray) -> None:
    """Add what lies at each place; of many places few occur in one map."""
    where, number = np.unique(places, return_counts=True)
    counts[where] += number


class _Ranks:
    """The normal scores in ascending order, of which some can be asked for."""

    def __init__(self, read: Read, maps: int, total: int) -> None:
        self._read, self._maps, self._total = read, maps, total

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, rank: np.ndarray) -> np.ndarray:
        upper = np.zeros(HALF, dtype=np.int64)
        for normal in _normals(self._read, self._maps):
            upper += np.bincount(_code(normal) >> 16, minlength=HALF)
        ends = np.cumsum(upper)
        block = np.searchsorted(ends, rank, side="right")
        wanted, row = np.unique(block, return_inverse=True)
        slot = np.full(HALF, -1)
        slot[wanted] = np.arange(len(wanted))
        lower = np.zeros((len(wanted), HALF), dtype=np.int64)
        for normal in _normals(self._read, self._maps):
            code = _code(normal)
            mine = slot[code >> 16]
            code, mine = code[mine >= 0] & (HALF - 1), mine[mine >= 0]
            _count(lower.reshape(-1), mine * HALF + code)
        within = np.cumsum(lower, axis=1)
        left = rank - (ends - upper)[block]
        low = [int(np.searchsorted(within[one], rest, side="right")) for one, rest in zip(row, left, strict=True)]
        return _decode((block << 16) | np.array(low))


def _code(values: np.ndarray) -> np.ndarray:
    """Return whole numbers in the order of float32 values, in 32 bits."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.int64)  # -0 becomes 0, as they are equal
    return np.where(bits >> 31, 0xFFFFFFFF - bits, bits | 0x80000000)


def _decode(codes: np.ndarray) -> np.ndarray:
    bits = np.where(codes >> 31, codes & 0x7FFFFFFF, 0xFFFFFFFF - codes)
    return bits.astype(np.uint32).view(np.float32)


def _pairs(read: Read, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for position in range(count):
        value, mask = check_pair(position, *read(position))
        if value.dtype != np.float32:
            raise ShapeError(f"map {position} must be float32 to be read piece by piece, got {value.dtype}; use pixel_metrics")
        yield value, mask


def _normals(read: Read, count: int) -> Iterator[np.ndarray]:
    for value, mask in _pairs(read, count):
        yield value[~mask]
