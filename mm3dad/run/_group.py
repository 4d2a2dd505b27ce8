"""The processes of one training, as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import distributed

from mm3dad.errors import ConfigError
from mm3dad.run._arguments import resolve_device

if TYPE_CHECKING:
    from mm3dad.methods import Detector

PLACE = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def _world() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE must be the number of processes, got {text!r}; unset it, or start with torchrun")
    return int(text)


def require_group(detector: Detector, device: str | None, workers: int | str | None) -> None:
    """Make sure that the environment's processes can train together, where it names several.

    Args:
        detector: what is to be fitted.
        device: as the user gave it.
        workers: processes that share the categories.

    Raises:
        ConfigError: the method does not train, a GPU chosen by number, workers besides, or variables that are missing.
    """
    world = _world()
    if world == 1:
        return
    if not detector.needs.trains:
        raise ConfigError(f"WORLD_SIZE is {world}, but {detector.name} takes no gradient steps to share; start it as one process")
    if workers not in (None, 1):
        raise ConfigError(f"WORLD_SIZE is {world} and workers are {workers!r}; share one training (torchrun) or many fits (--workers)")
    if str(device).startswith("cuda:"):
        raise ConfigError(f"of {world} processes each takes the GPU of its own number, got --device {device}; use --device cuda")
    missing = [name for name in PLACE if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {world}, but {missing[0]} is not set; start the processes with torchrun, or unset WORLD_SIZE")


@contextlib.contextmanager
def join_group(device: str | None) -> Iterator[None]:
    """Join the group that the environment names: gloo on the CPU, nccl on GPUs, one GPU for each process of a machine."""
    if _world() == 1:
        yield
        return
    on_gpu = resolve_device(device) != "cpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()
