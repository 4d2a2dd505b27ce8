"""A network with fixed inputs and named outputs, ready to leave torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Graph:
    """What `run.export` turns into a file.

    Args:
        name: of the file, "rgb" or "xyz".
        net: takes the inputs in order and gives a tuple of tensors, one per output.
        inputs: name -> example (float32); its shape is the only one the file takes.
        outputs: names.
        note: plain values that say what the inputs mean and what the outputs are.
    """

    name: str
    net: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    note: dict[str, Any] = field(default_factory=dict)
