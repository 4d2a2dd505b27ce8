"""One bank searched by many workers: each holds some shards, queries go to all, and the nearest of all are kept."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch import Tensor

from mm3dad.errors import DataError, StorageError
from mm3dad.memory.search import merge_nearest
from mm3dad.memory.sharded import Rows, Shard, require_k, search_shards
from mm3dad.run.scale import LOOK, RETRIES, STARVED, begin_work, connect, count_room, describe_versions


class _Searcher:
    """Some shards in a worker, opened when they are first asked: an actor that fails as it starts loses its error."""

    def __init__(self, shards: list[Shard], given: dict[str, str], folder: str) -> None:
        self.shards, self.given, self.folder = shards, given, folder

    @cached_property
    def opened(self) -> list[Rows]:
        begin_work(self.given, self.folder)
        return [shard.open() for shard in self.shards]

    def count(self) -> list[int]:
        return [rows.count for rows in self.opened]

    def nearest(self, queries: Tensor, starts: list[int], k: int) -> tuple[Tensor, Tensor]:
        return search_shards(self.opened, starts, queries, k)


class ClusterRows:
    """A bank whose shards lie in the memory of a cluster's workers, behind the interface of one in this process.

    Args:
        ray: connected.
        shards: in the order of the bank, cut into as many consecutive groups as there are workers.
        workers: how many.
    """

    def __init__(self, ray: Any, shards: Sequence[Shard], workers: int) -> None:
        if not shards:
            raise DataError("a bank needs at least one shard, got none")
        self._ray = ray
        count = min(workers, len(shards))
        edges = [len(shards) * part // count for part in range(count + 1)]
        groups = [list(shards[first:last]) for first, last in pairwise(edges)]
        # No core is set aside for them: a shard whose node was lost opens again on a node that is busy.
        kind = ray.remote(_Searcher).options(num_cpus=0, max_restarts=RETRIES, max_task_retries=RETRIES, scheduling_strategy="SPREAD")
        self._searchers = [kind.remote(group, describe_versions(), os.getcwd()) for group in groups]
        counts = self._ask(lambda number: self._searchers[number].count.remote())
        self.starts, self.count = [], 0
        for group in counts:
            self.starts.append([self.count + sum(group[:number]) for number in range(len(group))])
            self.count += sum(group)

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest rows of the bank: distances (P, k) float32 ascending, indices (P, k) int64, equal ones by lowest index.

        Args:
            queries: (P, C) float32.
            k: 1 to M.

        Raises:
            ConfigError: k is out of range.
            StorageError: the workers of a shard were lost each time.
        """
        require_k(k, self.count)
        sent = self._ray.put(queries)
        return merge_nearest(self._ask(lambda number: self._searchers[number].nearest.remote(sent, self.starts[number], k)), k)

    def _ask(self, send: Callable[[int], Any]) -> list[Any]:
        """Ask every worker, and return the answers in the order of the shards."""
        asked = [send(number) for number in range(len(self._searchers))]
        answers: list[Any] = []
        patience = time.monotonic() + STARVED
        while len(answers) < len(asked):
            number = len(answers)
            try:
                answers.append(self._ray.get(asked[number]))
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause or error from None
            except self._ray.exceptions.RayError as error:
                # Its node was lost a moment ago: it opens elsewhere, and is asked again.
                if isinstance(error, self._ray.exceptions.ActorUnavailableError) and time.monotonic() < patience:
                    time.sleep(LOOK)
                    asked[number] = send(number)
                    continue
                raise StorageError(
                    f"a worker that held shards of the bank was lost and did not come back ({type(error).__name__}); probably memory: "
                    "split the bank into smaller shards, or add nodes"
                ) from None
        return answers

    def close(self) -> None:
        """Let the workers go."""
        for searcher in self._searchers:
            self._ray.kill(searcher)


@contextlib.contextmanager
def open_on_cluster(shards: Sequence[Shard], workers: str) -> Iterator[ClusterRows]:
    """Open a bank on a cluster while the block runs: as many workers as cores, each with some of the shards.

    The answer is that of `mm3dad.memory.sharded.ShardedRows(shards)`, bit for bit.

    Args:
        shards: in the order of the bank; every node must see their files.
        workers: see `mm3dad.run.scale.connect`.

    Raises:
        ConfigError: no cluster, or a node with other versions than here.
        DataError: no shard.
        ModelError: a shard is missing or damaged.
    """
    with connect(workers) as ray:
        rows = ClusterRows(ray, shards, max(1, count_room(ray)))
        try:
            yield rows
        finally:
            rows.close()
