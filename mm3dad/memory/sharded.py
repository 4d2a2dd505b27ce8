"""A bank in shards: each is searched by itself, and the nearest of all are kept.

Where the shards are searched, here or by the workers of a cluster (mm3dad.run.shards), does not change a bit of the answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.memory.compressed import CompressedRows
from mm3dad.memory.search import merge_nearest, nearest_rows

BLOCK = 8192  # rows searched at a time; shards begin at multiples of it, so that their number does not change the answer


class Rows(Protocol):
    """What a shard opens as."""

    count: int

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest rows of each query (P, C): distances (P, k) float32 ascending, indices (P, k) int64."""


class FlatRows:
    """Consecutive rows of a tensor file in memory, in their own precision, searched exactly.

    Args:
        path: a safetensors file, such as that of a saved model; only these rows are read.
        tensor: name of the (M, C) rows in it.
        first, last: the rows; `last` is not among them.

    Raises:
        ModelError: no such file, tensor or rows.
    """

    def __init__(self, path: str | Path, tensor: str, first: int, last: int) -> None:
        self.rows = _open(path, tensor)[first:last]
        if len(self.rows) != last - first or not len(self.rows):
            raise ModelError(f"{tensor!r} in {path} has no rows {first} to {last}; the bank has changed, split it again")
        self.count = len(self.rows)

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest rows, equal distances by lowest index; see `Rows.nearest`."""
        parts = []
        for first in range(0, self.count, BLOCK):
            block = self.rows[first : first + BLOCK]
            distances, indices = nearest_rows(queries, block, min(k, len(block)))
            parts.append((distances, indices + first))
        return merge_nearest(parts, k)


@dataclasses.dataclass(frozen=True)
class Shard:
    """Where a shard lies; small, so that it can be sent to whoever opens it.

    Args:
        path: folder of a bank that `memory.compressed.build` wrote, or the safetensors file that holds `tensor`.
        tensor: name of (M, C) rows; None for a compressed bank.
        first, last: rows of the tensor.
    """

    path: str
    tensor: str | None = None
    first: int = 0
    last: int = 0

    def open(self) -> Rows:
        """Open it for searching."""
        if self.tensor is None:
            return CompressedRows(self.path)
        return FlatRows(self.path, self.tensor, self.first, self.last)


def split_rows(path: str | Path, tensor: str, parts: int) -> list[Shard]:
    """Cut the rows of a tensor file into shards of about equal size; fewer than `parts` where there are not so many blocks of rows.

    Raises:
        ConfigError: parts < 1.
        ModelError: no such file or tensor.
    """
    if parts < 1:
        raise ConfigError(f"a bank is split into at least one part, got {parts}")
    count = _open(path, tensor).get_shape()[0]
    blocks = -(-count // BLOCK)
    edges = [blocks * part // min(parts, blocks) * BLOCK for part in range(min(parts, blocks))] + [count]
    return [Shard(str(path), tensor, first, last) for first, last in pairwise(edges)]


def search_shards(opened: Sequence[Rows], starts: Sequence[int], queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search some shards of a bank and keep their k nearest, or all rows where they have fewer.

    Args:
        opened: shards in the order of the bank.
        starts: number of the first row of each in the bank.
        queries: (P, C) float32.
        k: at least 1.
    """
    parts = []
    for rows, start in zip(opened, starts, strict=True):
        distances, indices = rows.nearest(queries, min(k, rows.count))
        parts.append((distances, indices + start))
    return merge_nearest(parts, k)


def require_k(k: int, count: int) -> int:
    """Return k, the number of neighbours asked of `count` rows.

    Raises:
        ConfigError: out of range.
    """
    if not 1 <= k <= count:
        raise ConfigError(f"k must be between 1 and the {count} rows, got {k}")
    return k


class ShardedRows:
    """Shards opened in this process: one bank behind the interface of each of them.

    Args:
        shards: in the order of the bank; rows are numbered through.

    Raises:
        DataError: no shard.
        ModelError: a shard is missing or damaged.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        if not shards:
            raise DataError("a bank needs at least one shard, got none")
        self.opened = [shard.open() for shard in shards]
        self.starts = torch.tensor([0, *(rows.count for rows in self.opened)]).cumsum(0).tolist()
        self.count = self.starts.pop()

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest rows of all shards, equal distances by lowest index; see `Rows.nearest`."""
        return search_shards(self.opened, self.starts, queries, require_k(k, self.count))


def _open(path: str | Path, tensor: str):  # type: ignore[no-untyped-def]  # safetensors has no name for a slice
    from safetensors import SafetensorError, safe_open

    try:
        rows = safe_open(str(path), framework="pt").get_slice(tensor)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} holds no rows {tensor!r} ({' '.join(str(error).split())[:120]}); give the tensors of a saved bank"
        ) from error
    if len(rows.get_shape()) != 2 or not rows.get_shape()[0]:
        raise ModelError(f"{tensor!r} in {path} must hold rows (M, C), got {tuple(rows.get_shape())}; give the tensors of a saved bank")
    return rows
