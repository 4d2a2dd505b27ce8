"""Work and banks larger than a machine, on Ray (the extra `scale`): jobs as tasks, shards of a bank as actors.

The nodes share a file system: a worker reads the data and writes its results itself, as one process would. Jobs follow from their
arguments alone, so one whose node was lost is done again to the same result.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from mm3dad import __version__
from mm3dad.errors import ConfigError, MissingPackageError, StorageError
from mm3dad.run._arguments import list_versions
from mm3dad.run._lock import LOCK

THREADS = 1  # of each worker: many workers share the cores, and results are bit-equal at one number of threads only
RETRIES = 2  # times that a job is done again after its worker or node was lost
LOOK = 1.0  # seconds between looks at the cluster while nothing finishes
STARVED = 120.0  # seconds without a node that could take a job, before the wait is given up
REACH = 5.0  # seconds to reach the head of a cluster
OBJECT_STORE = 1 << 28  # bytes of a cluster of our own: jobs and rows are small, what is large lies on disk


def is_cluster(workers: int | str | None) -> bool:
    """Say whether the workers are those of a cluster: "ray", "ray:N" or "ray:ADDRESS"."""
    return isinstance(workers, str) and workers.partition(":")[0] == "ray"


def require_cluster(workers: str) -> None:
    """Make sure that a cluster can be asked for, before any work is done.

    Raises:
        ConfigError: no address after the colon, or one of Ray's client, which has no driver of its own.
        MissingPackageError: Ray is not installed.
    """
    _, colon, place = workers.partition(":")
    if (colon and not place) or "//" in place or place == "0":
        raise ConfigError(f"expected ray, ray:N (workers here), ray:HOST:PORT or ray:auto (a running cluster), got {workers!r}")
    if find_spec("ray") is None:
        raise MissingPackageError('workers of a cluster need Ray, which is not installed; pip install "mm3dad[scale]"')


@contextlib.contextmanager
def connect(workers: str) -> Iterator[Any]:
    """Give the module `ray`, connected; a cluster of our own ends with the block, one that runs is left as it is.

    Args:
        workers: "ray" (one worker for each core of this machine), "ray:N" (N workers here), "ray:HOST:PORT" or "ray:auto" (running).

    Raises:
        ConfigError: no cluster at the address.
        MissingPackageError: Ray is not installed.
    """
    require_cluster(workers)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anyone
    import ray

    if ray.is_initialized():
        yield ray
        return
    place = workers.partition(":")[2]
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    if not place or place.isdecimal():
        ray.init(address="local", num_cpus=int(place or _cores()), object_store_memory=OBJECT_STORE, **quiet)
    else:
        try:
            if place != "auto":
                host, _, port = place.rpartition(":")
                socket.create_connection((host, int(port)), REACH).close()
            ray.init(address=place, **quiet)
        except (OSError, ValueError, OverflowError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"no Ray cluster at {place} that this machine is a node of ({reason}); start one with `ray start --head`, or use ray:N"
            ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_on_cluster(
    call: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: str,
    names: Sequence[str],
    shared: str | Path | None = None,
    gpus: int = 0,
) -> Iterator[Any]:
    """Yield call(*job) for each job, in the order they finish; each has one core and one thread.

    A job whose worker or node is lost is done again elsewhere, twice at most. The others go on.

    Args:
        call: a function of a module.
        jobs: arguments of each call.
        workers: see `connect`.
        names: of the jobs, for errors.
        shared: a folder whose lock the caller holds, and that every node must see; None where the jobs write nothing.
        gpus: of each job.

    Raises:
        ConfigError: no cluster, or a node with other versions than here.
        StorageError: jobs whose workers were lost each time, no node that could take a job, or a node that does not see `shared`.
    """
    lost: list[str] = []
    with connect(workers) as ray:
        task = ray.remote(_do_job).options(num_cpus=THREADS, num_gpus=gpus, max_retries=RETRIES)
        place = None if shared is None else str(Path(shared).absolute())
        given = describe_versions()
        queue = iter(zip(jobs, names, strict=True))
        pending: dict[Any, str] = {}
        served = time.monotonic()
        try:
            while True:
                room = count_room(ray, gpus)
                served = time.monotonic() if room else served
                if time.monotonic() - served > STARVED:
                    raise StorageError(
                        f"the cluster has had no node with {THREADS} core and {gpus} GPUs for {STARVED:.0f} s; add one and run again, "
                        "what is finished stays"
                    )
                # Two for each worker: one that it does, one that is on its way.
                for job, name in islice(queue, max(0, 2 * max(room, 1) - len(pending))):
                    pending[task.remote(call, job, place, given, os.getcwd())] = name
                if not pending:
                    break
                for done in ray.wait(list(pending), num_returns=1, timeout=LOOK)[0]:
                    name = pending.pop(done)
                    try:
                        result = ray.get(done)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause or error from None
                    except ray.exceptions.RayError as error:
                        lost.append(f"{name} ({type(error).__name__})")
                    else:
                        yield result
        finally:
            for running in pending:
                ray.cancel(running, force=True)
    if lost:
        raise StorageError(
            f"{len(lost)} jobs lost their workers {RETRIES + 1} times, the first: {lost[0]}; probably memory: give the nodes fewer cores "
            "(`ray start --num-cpus`) and run again, what is finished stays"
        )


def count_room(ray: Any, gpus: int = 0) -> int:
    """Return how many jobs the nodes that are there can do at a time."""
    there = ray.cluster_resources()
    room = int(there.get("CPU", 0)) // THREADS
    return min(room, int(there.get("GPU", 0)) // gpus) if gpus else room


def describe_versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {"mm3dad": __version__, **list_versions()}


def require_same(given: dict[str, str]) -> None:
    """Refuse to work in a process whose versions are not the given ones.

    Raises:
        ConfigError: what differs, both sides.
    """
    own = describe_versions()
    for name in sorted({*given, *own}):
        if own.get(name) != given.get(name):
            raise ConfigError(
                f"a node of the cluster has {name} {own.get(name, 'not installed')}, here it is {given.get(name, 'not installed')}; "
                "results would differ, install the same versions everywhere"
            )


def begin_work(given: dict[str, str], folder: str) -> None:
    """Make a worker like the driver: versions, working folder, number of threads."""
    import torch

    require_same(given)
    with contextlib.suppress(OSError):  # not on this node: then only paths from the root are right, and others are found missing
        os.chdir(folder)
    torch.set_num_threads(THREADS)


def _do_job(call: Callable[..., Any], job: tuple[Any, ...], shared: str | None, given: dict[str, str], folder: str) -> Any:
    """Do a job in a worker of the cluster, after a look at whether it may."""
    begin_work(given, folder)
    if shared is not None and not (Path(shared) / LOCK).exists():
        raise StorageError(f"a node of the cluster does not see {shared}; results must go to a file system that all nodes share")
    return call(*job)
