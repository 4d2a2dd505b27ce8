"""Search in more rows than memory holds: coarse cells and product codes (FAISS IVF-PQ) on disk, full rows on disk for the last word.

Source: Jegou, Douze and Schmid, Product Quantization for Nearest Neighbor Search, PAMI 2011, section 4 (IVFADC); Johnson, Douze and
Jegou, Billion-scale similarity search with GPUs, 2017. The codes propose, the full rows decide: distances are exact, only a
proposal that misses costs recall, which `measure_recall` tells.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm3dad import files
from mm3dad.errors import ConfigError, DataError, MissingPackageError, ModelError
from mm3dad.memory.mapped import READ_ROWS, MappedRows
from mm3dad.memory.search import RANKED, merge_nearest, nearest_rows, rank_proposals
from mm3dad.ops.keep_smallest import keep_smallest

FORMAT = 1
ROWS, INDEX, META = "rows.f16", "index.faiss", "bank.json"
TRAIN_PER_CELL = 64  # training rows of a coarse cell; faiss asks for 39 at least
ASSIGNED = 512  # rows whose distances to all cells are in memory at a time


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError("a bank on disk needs faiss; install it with: pip install faiss-cpu") from error
    return faiss


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the codes are cut.

    Args:
        cells: coarse cells; about 4 sqrt(rows).
        bytes: code bytes of a row, a divisor of the channels.
        probe: cells that a query looks into.
        candidates: rows that are compared exactly, for each query.
    """

    cells: int
    bytes: int
    probe: int = 32
    candidates: int = 128

    @classmethod
    def for_rows(cls, count: int, channels: int) -> Layout:
        """Return a layout for so many rows: the largest code of at most a quarter of the channels."""
        code = next(size for size in range(max(1, channels // 4), 0, -1) if channels % size == 0)
        return cls(cells=max(1, min(65536, int(4 * math.sqrt(count)), count // TRAIN_PER_CELL)), bytes=code)


def build(folder: str | Path, blocks: Iterable[Tensor], training: Tensor, layout: Layout) -> int:
    """Write a bank of rows that stream in; memory holds the codes and one block.

    Args:
        folder: receives rows.f16, index.faiss and bank.json, which is written last.
        blocks: (M, C) float32, finite, any M each.
        training: (T, C) float32, a sample of the rows: cells and codes are learnt from it.
        layout: how the codes are cut; with fewer than 256 training rows, codes have fewer bits.

    Returns:
        The number of rows.

    Raises:
        ConfigError: a layout that does not fit the rows.
        DataError: no rows, rows of another width, or numbers that are not finite in half precision.
        StorageError: the disk is full or the folder cannot be written.
    """
    faiss = _faiss()
    folder, channels = Path(folder), training.shape[1]
    if layout.cells < 1 or layout.cells > len(training) or layout.bytes < 1 or channels % layout.bytes:
        raise ConfigError(
            f"{layout.cells} cells and {layout.bytes} code bytes do not fit {len(training)} training rows of {channels} channels; "
            "cells may be as many as training rows, bytes must divide the channels"
        )
    if len(training) == 1:  # a codebook has two words at least
        training = training.repeat(2, 1)
    bits = min(8, int(math.log2(len(training))))
    quantizer = faiss.IndexFlatL2(channels)
    index = faiss.IndexIVFPQ(quantizer, channels, layout.cells, layout.bytes, bits)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.cp.seed = index.pq.cp.seed = 0
    index.train(np.ascontiguousarray(training.numpy(), dtype=np.float32))
    centers = torch.from_numpy(quantizer.reconstruct_n(0, layout.cells))
    (folder / META).unlink(missing_ok=True)  # an older bank here ends now

    def pack() -> Iterator[bytes]:
        for block in blocks:
            half = block.half()
            if block.ndim != 2 or block.shape[1] != channels or not bool(half.isfinite().all()):
                raise DataError(f"rows must be (M, {channels}), finite and below 65504, got {tuple(block.shape)}; check the features")
            _add(index, half.float(), centers)
            yield half.numpy().tobytes()

    files.write_stream(folder / ROWS, pack())
    count = int(index.ntotal)
    if not count:
        (folder / ROWS).unlink()
        raise DataError("a bank needs at least one row, got none; check the training folder")
    files.write_with(folder / INDEX, lambda path: faiss.write_index(index, str(path)))
    _seal(folder, count, channels, layout)
    return count


def _add(index: Any, rows: Tensor, centers: Tensor) -> None:
    """Add rows (M, C) to the cells of their nearest centers (cells, C), which torch's products find several times as soon as faiss."""
    faiss = _faiss()
    doubled, squares = -2 * centers.T, centers.square().sum(1)
    none = torch.full((ASSIGNED, 1), torch.inf), torch.zeros((ASSIGNED, 1), dtype=torch.int64)
    cells = [keep_smallest(*(part[: len(some)] for part in none), some @ doubled, squares, 0)[1] for some in rows.split(ASSIGNED)]
    values, places = np.ascontiguousarray(rows.numpy()), torch.cat(cells).numpy()
    index.add_core(len(values), faiss.swig_ptr(values), None, faiss.swig_ptr(places))


def _seal(folder: Path, count: int, channels: int, layout: Layout) -> None:
    files.write_json(
        folder / META,
        {
            "format": FORMAT,
            "rows": count,
            "channels": channels,
            "layout": dataclasses.asdict(layout),
            "sha256": {name: files.sha256_file(folder / name) for name in (ROWS, INDEX)},
        },
    )


class CompressedRows:
    """Rows on disk behind the interface of exact search: `nearest(queries, k)`.

    Args:
        folder: what `build` or `merge` wrote. Codes and rows are mapped into memory, so that only what is asked for is read; the
            codes that were looked at stay in it, the rows do not.
        check: compare the checksums, which reads everything once.

    Raises:
        ModelError: missing, damaged, or of another format version.
    """

    def __init__(self, folder: str | Path, check: bool = False) -> None:
        faiss = _faiss()
        self.folder = Path(folder)
        try:
            meta = files.read_json(self.folder / META)
            version, self.count, self.channels = meta["format"], int(meta["rows"]), int(meta["channels"])
            self.layout, digests = Layout(**meta["layout"]), dict(meta["sha256"])
            if version != FORMAT:
                raise ModelError(f"{self.folder} has format {version}, this version reads {FORMAT}; build the bank again")
            for name in (ROWS, INDEX) if check else ():
                if files.sha256_file(self.folder / name) != digests[name]:
                    raise ModelError(f"{self.folder / name} is damaged or foreign; build the bank again")
            self.rows = MappedRows(self.folder / ROWS, self.count, self.channels)
            self.index = faiss.read_index(str(self.folder / INDEX), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except (DataError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{self.folder} holds no whole bank ({' '.join(str(error).split())[:120]}); build it again") from error
        if (self.index.ntotal, self.index.d) != (self.count, self.channels):
            raise ModelError(f"{self.folder} has {self.index.ntotal} codes for {self.count} rows; the bank is damaged, build it again")
        self.index.nprobe = min(self.layout.probe, self.layout.cells)

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest of the proposed rows: distances (P, k) float32 exact and ascending, indices (P, k) int64.

        A query whose cells hold fewer than k rows is searched in all of them.

        Args:
            queries: (P, C) float32.
            k: 1 to M.

        Raises:
            ConfigError: k is out of range.
        """
        if not 1 <= k <= self.count:
            raise ConfigError(f"k must be between 1 and the {self.count} rows, got {k}")
        wanted = min(self.count, max(k, self.layout.candidates))
        _, found = self.index.search(np.ascontiguousarray(queries.numpy(), dtype=np.float32), wanted)
        candidates = torch.from_numpy(found).sort(1).values  # ascending: of equal distances the lowest row; -1 stands for none
        parts = [self._rank(some, rows, k) for some, rows in zip(queries.split(RANKED), candidates.split(RANKED), strict=True)]
        distances, indices = (torch.cat(column) for column in zip(*parts, strict=True))
        if len(short := ((candidates >= 0).sum(1) < k).nonzero()[:, 0]):
            distances[short], indices[short] = self.nearest_exact(queries[short], k)
        return distances, indices

    def _rank(self, queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k nearest of each query's candidates (P, n) by the full rows, each of which is read once."""
        wanted, place = candidates.clamp_min(0).unique(return_inverse=True)
        distances, index = rank_proposals(queries, self.rows.pick(wanted), place.masked_fill_(candidates < 0, -1), k)
        return distances, wanted[index]

    def nearest_exact(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest of all rows by reading them once: what `nearest` is measured against."""
        parts = [(torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64))]
        for number, block in enumerate(self.rows.blocks()):
            distance, index = nearest_rows(queries, block, min(k, len(block)))
            parts = [merge_nearest([*parts, (distance, index + number * READ_ROWS)], k)]
        return parts[0]

    def measure_recall(self, queries: Tensor) -> float:
        """Return the share of queries whose nearest row is as near as the exact one (recall@1, ties count)."""
        return float((self.nearest(queries, 1)[0] <= self.nearest_exact(queries, 1)[0] * (1 + 1e-6)).float().mean())


def merge(folder: str | Path, shards: Sequence[str | Path], training: Tensor) -> int:
    """Write the rows of several banks, in their order, as one; the codes are learnt again from `training`, as `build` does."""
    opened = [CompressedRows(shard) for shard in shards]
    if not opened:
        raise DataError("merge needs at least one bank, got none")
    rows = (block for one in opened for block in one.rows.blocks())
    return build(folder, rows, training, Layout.for_rows(sum(one.count for one in opened), opened[0].channels))
