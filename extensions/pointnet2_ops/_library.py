"""Find and load the native kernels: those built with this package, else those of mm3dad."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = {"cpu": "_kernels.so", "cuda": "_kernels_cuda.so"}
PROBE = "mm3dad::three_nn"


def kernels_for(tensor: Tensor) -> Any | None:
    """Return `torch.ops.mm3dad` where its kernels run on the tensor's device, else None: then torch does the work.

    Raises:
        RuntimeError: MM3DAD_OPS=native and there are no kernels for the device.
        ValueError: MM3DAD_OPS is none of auto, native, reference.
    """
    choice = os.environ.get("MM3DAD_OPS", "auto")
    if choice not in ("auto", "native", "reference"):
        raise ValueError(f"MM3DAD_OPS must be auto, native or reference, got {choice!r}")
    if choice != "reference" and load(tensor.device.type):
        return torch.ops.mm3dad
    if choice == "native":
        raise RuntimeError(f"MM3DAD_OPS=native, but no kernels for {tensor.device.type} are built; see docs/kernels.md or unset MM3DAD_OPS")
    return None


@cache
def load(device: str) -> bool:
    """Load the kernels of one type of device once; return whether they are there."""
    if device not in NAMES or (device != "cpu" and not load("cpu")):
        return False
    # mm3dad may have loaded them already, and one process can register them once only.
    if _is_registered(device):
        return True
    for folder in _folders():
        library = folder / NAMES[device]
        if library.exists():
            try:
                torch.ops.load_library(str(library))
            except OSError:
                continue
            return True
    return False


def _is_registered(device: str) -> bool:
    known = PROBE in torch._C._dispatch_get_all_op_names()
    return known and bool(torch._C._dispatch_has_kernel_for_dispatch_key(PROBE, device.upper()))


def _folders() -> list[Path]:
    found = importlib.util.find_spec("mm3dad")
    return [Path(__file__).parent, *(Path(place) / "ops" for place in (found.submodule_search_locations or [] if found else []))]
