"""Workers for work on many samples or runs: processes here, or a Ray cluster; few jobs wait at a time, none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any

from mm3dad.errors import ConfigError, StorageError
from mm3dad.run.scale import THREADS, is_cluster, require_cluster, run_on_cluster

Workers = int | str | None


def check_workers(workers: Workers) -> Workers:
    """Return the workers as `run_parallel` takes them, or say what is wrong before any work is done.

    Raises:
        ConfigError: neither a number nor "ray", "ray:N" or "ray:ADDRESS".
        MissingPackageError: Ray is not installed.
    """
    if workers is None or is_cluster(workers):
        if workers is not None:
            require_cluster(str(workers))
        return workers
    try:
        count = int(workers)
    except ValueError:
        count = 0
    if isinstance(workers, bool) or count < 1:
        raise ConfigError(f"workers must be a number from 1, ray, ray:N or ray:ADDRESS, got {workers!r}; e.g. --workers 2")
    return count


def describe_workers(workers: Workers) -> dict[str, Any]:
    """Return what a result says of its workers: how many (or "ray"), and the threads of each; nothing where there are none."""
    if workers in (None, 1):
        return {}
    return {"workers": "ray" if is_cluster(workers) else workers, "torch_threads": THREADS}


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(THREADS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def run_parallel(
    call: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: Workers,
    *,
    names: Sequence[str] = (),
    shared: str | Path | None = None,
    gpus: int = 0,
) -> Iterator[Any]:
    """Yield call(*job) for each job, in the order they finish.

    Args:
        call: a function of a module, so that another process finds it.
        jobs: arguments of each call.
        workers: processes, one per core when None; with one worker the calls happen here. "ray...": see `run_on_cluster`.
        names: of the jobs, for the error of one whose worker is lost; their numbers by default.
        shared: the folder that the jobs write to, whose lock the caller holds: a node of a cluster must see it.
        gpus: of each job, on a cluster.

    Raises:
        StorageError: a worker was stopped from outside.
    """
    if is_cluster(workers):
        yield from run_on_cluster(call, jobs, str(workers), names or [f"job {i}" for i in range(len(jobs))], shared, gpus)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(int(workers or cores), len(jobs))
    if count <= 1:
        for job in jobs:
            yield call(*job)
        return
    # spawn: the parent may hold threads of torch and open3d, which a fork would copy in the middle of their work
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        queue = iter(jobs)
        pending: set[Future[Any]] = {pool.submit(call, *job) for job in islice(queue, 2 * count)}
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                    pending |= {pool.submit(call, *job) for job in islice(queue, 1)}
        except BrokenProcessPool as error:
            raise StorageError(
                "a worker process was stopped, probably for memory; run again with fewer workers, what is finished stays"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
