"""Worker processes for work on many samples: few jobs wait at a time, none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

from mm3dad.errors import StorageError


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def run_parallel(call: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int | None) -> Iterator[Any]:
    """Yield call(*job) for each job, in the order they finish.

    Args:
        call: a function of a module, so that another process finds it.
        jobs: arguments of each call.
        workers: processes, one per core when None; with one worker the calls happen here.

    Raises:
        StorageError: a worker was stopped from outside.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, len(jobs))
    if workers <= 1:
        for job in jobs:
            yield call(*job)
        return
    # spawn: the parent may hold threads of torch and open3d, which a fork would copy in the middle of their work
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        queue = iter(jobs)
        pending: set[Future[Any]] = {pool.submit(call, *job) for job in islice(queue, 2 * workers)}
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
