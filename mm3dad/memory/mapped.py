"""Rows of a file that is mapped into memory, of which no more stays in this process than is being looked at."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

READ_ROWS = 1 << 16
SCATTERED = 256  # rows picked here and there before their pages are given back; the system maps up to 64 KiB around each
GAP = 1 << 16  # bytes between two rows that are rather read than left out


class MappedRows:
    """Rows (M, C) of a file of float16, read on access.

    Pages that were looked at are given back at once: they stay in the system's cache, which drops them when memory gets short, and do
    not count as this process's memory.

    Args:
        path: the file, which may be replaced while it is open; the old one is read on.
        count, channels: M and C.

    Raises:
        OSError, ValueError: no such file, or one of another size.
    """

    def __init__(self, path: str | Path, count: int, channels: int) -> None:
        with Path(path).open("rb") as stream:
            self._pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._pages.madvise(mmap.MADV_RANDOM)  # what is read is asked for, here and there
        self._rows = np.frombuffer(self._pages, np.float16).reshape(count, channels)

    def pick(self, wanted: Tensor) -> Tensor:
        """Return rows (n, C) float32 by their numbers (n,) int64."""
        rows = torch.empty(len(wanted), self._rows.shape[1])
        self._ask(np.sort(wanted.numpy()))
        for some, into in zip(wanted.split(SCATTERED), rows.split(SCATTERED), strict=True):
            into.copy_(self._copy(some.numpy()))
        return rows

    def blocks(self) -> Iterator[Tensor]:
        """Yield all rows in order, in blocks of READ_ROWS: (M, C) float32."""
        size = READ_ROWS * self._rows.strides[0]
        for number, first in enumerate(range(0, len(self._rows), READ_ROWS)):
            self._pages.madvise(mmap.MADV_WILLNEED, number * size, size)
            yield self._copy(slice(first, first + READ_ROWS))

    def _ask(self, wanted: np.ndarray) -> None:
        """Tell the disk of all rows (ascending) before the first is read: it serves many requests at a time as fast as one."""
        places = wanted * self._rows.strides[0]
        cuts = np.flatnonzero(np.diff(places) > GAP)
        for first, last in zip(places[[0, *(cuts + 1)]], places[[*cuts, -1]], strict=True) if len(wanted) else ():
            begin = first // mmap.PAGESIZE * mmap.PAGESIZE
            self._pages.madvise(mmap.MADV_WILLNEED, begin, last + self._rows.strides[0] - begin)

    def _copy(self, which: Any) -> Tensor:
        rows = torch.from_numpy(self._rows[which].astype(np.float32))
        self._pages.madvise(mmap.MADV_DONTNEED)
        return rows
