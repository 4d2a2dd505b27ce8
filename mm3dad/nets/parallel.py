"""Training in several processes: each takes its share of the batches, gradients are averaged. Without a process group nothing happens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


def is_parallel() -> bool:
    """Say whether a process group of more than one process is there."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def count() -> int:
    """Return the number of processes, 1 without a group."""
    return distributed.get_world_size() if is_parallel() else 1


def rank() -> int:
    """Return this process's number, 0 without a group."""
    return distributed.get_rank() if is_parallel() else 0


def share_out(batches: Iterable[T]) -> Iterator[tuple[T | None, int]]:
    """Deal batches out to the processes; yield this one's and how many take part in the step.

    The last step may have fewer batches than processes; who gets none is given None and still takes part in the averaging.
    """
    world, own = count(), rank()
    stream = iter(batches)
    while group := list(islice(stream, world)):
        yield (group[own] if own < len(group) else None), len(group)


def average_gradients(parameters: Sequence[nn.Parameter], loss: Tensor | None, batches: int) -> Tensor:
    """Average the gradients of `batches` batches over the processes, in place; return the mean loss.

    Args:
        parameters: the same in every process; one without a gradient counts as zeros.
        loss: () of this process's batch, None where it had none.
    """
    device = parameters[0].device
    value = torch.zeros((), device=device) if loss is None else loss.detach().float()
    if not is_parallel():
        return value
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([value.view(1), *(part.flatten().float() for part in parts)])
    distributed.all_reduce(flat)
    flat /= batches
    start = 1
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = flat[start : start + part.numel()].view_as(part).to(part.dtype)
        start += part.numel()
    return flat[0]


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give every process the values of the first one, in place."""
    if is_parallel():
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def wait_for_all() -> None:
    """Wait until every process is here."""
    if is_parallel():
        distributed.barrier()
