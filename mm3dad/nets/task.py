"""The nouns of training: what is learned, how, where its traces go, and what happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mm3dad.errors import ConfigError
from mm3dad.ops.processor import has_bfloat16_units

Log = Callable[[str, int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingSettings:
    """How a task is trained.

    Args:
        seed: of batches and of dropout.
        clip: largest norm of all gradients together; 0 clips nothing.
        ema: decay of the average of weights over steps that is kept in place of the last ones; 0 keeps the last.
        patience: epochs without a better validation after which training stops; 0 never stops early.
        mixed: bfloat16 where it is safe (autocast): None where a GPU supports it, True also on a CPU, False nowhere.
        device: torch device.

    Raises:
        ConfigError: a value out of range.
    """

    seed: int = 0
    clip: float = 0.0
    ema: float = 0.0
    patience: int = 0
    mixed: bool | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not (0 <= self.clip < math.inf and 0 <= self.ema < 1 and self.patience >= 0):
            raise ConfigError(f"training needs clip >= 0, 0 <= ema < 1 and patience >= 0, got {self.clip}, {self.ema}, {self.patience}")


@dataclass
class History:
    """What happened.

    Args:
        rows: one per epoch: "loss", its named terms, "validation" where there is one.
        start: validation before the first step.
        best: epochs after which the state was kept (0: no epoch improved on the untrained state); all without a validation.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    start: float | None = None
    best: int = 0


@dataclass(frozen=True)
class TrainingRun:
    """Where a training leaves its traces; run/ fills it in.

    Args:
        folder: of checkpoints, one folder in it per task; None keeps none.
        identity: what the result depends on besides the task's own (data, version); it goes into the checkpoints.
        log: called with (task, epoch, values) after each epoch, e.g. for TensorBoard.
        histories: what happened in each task by its name, filled in by `train`.
    """

    folder: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    log: Log | None = None
    histories: dict[str, History] = field(default_factory=dict)


@dataclass
class Task:
    """What is learned.

    Args:
        name: of the task within its method, e.g. "mapping"; it names the folder of the checkpoints.
        identity: plain values on which the result depends (settings, ids of samples); a checkpoint of another one is refused.
        modules: every module that changes while training, by name; frozen ones stay outside.
        optimizer: makes the optimizer, once the modules are on their device.
        epochs: most there are.
        batches: gives the batches of an epoch from (epoch, generator); their order follows from these two alone.
        loss: of a batch: a scalar, or named terms that are summed. The tensors in the batch are on the device by then.
        validate: loss on held-out normal samples, lower is better, modules in eval mode; None: the last state is kept.
        rate: factor of the learning rate at a step (0, 1, ...); None leaves it as it is.
    """

    name: str
    identity: dict[str, Any]
    modules: dict[str, nn.Module]
    optimizer: Callable[[], Optimizer]
    epochs: int
    batches: Callable[[int, torch.Generator], Iterable[Any]]
    loss: Callable[[Any], Tensor | dict[str, Tensor]]
    validate: Callable[[], float] | None = None
    rate: Callable[[int], float] | None = None


def choose_precision(on_cpu: bool, device: str) -> bool | None:
    """Return `TrainingSettings.mixed`: what a GPU does anyway, and bfloat16 on a CPU that has matrix units for it, if asked for."""
    return True if on_cpu and torch.device(device).type == "cpu" and has_bfloat16_units() else None


def split_normals(count: int, share: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
    """Part normal samples into those to learn from and those to validate on.

    Args:
        count: how many there are.
        share: of them to validate on, at least one of 4 or more, and none of fewer.
        seed: of the choice.

    Returns:
        The numbers of both parts, ascending, together all.
    """
    held = min(count - 1, max(1, round(share * count))) if share > 0 and count >= 4 else 0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held:]), sorted(order[:held])


def shuffle_batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Return the indices 0 .. count - 1 in random order, cut into batches of `size`; the last may be smaller.

    Args:
        count, size: at least 1.
        generator: of the order.
    """
    return list(torch.randperm(count, generator=generator).split(size))
