"""Which code the ops run: the native kernels where their library is built, else the torch reference."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mm3dad.errors import ConfigError, MissingPackageError

LIBRARIES = {"cpu": Path(__file__).with_name("_kernels.so"), "cuda": Path(__file__).with_name("_kernels_cuda.so")}
CHOICES = ("auto", "native", "reference")
CURE = "build them with: python extensions/build_kernels.py (in the checkout; needs g++, and nvcc for CUDA), or set MM3DAD_OPS=reference"


def native_kernels(device: str = "cpu", op: str = "") -> Any | None:
    """Return `torch.ops.mm3dad`, or None where the reference is to run; MM3DAD_OPS chooses (auto, native, reference).

    Args:
        device: `cpu` or `cuda`, the type of device that the tensors lie on.
        op: the kernel that is wanted; None is returned where the library has none for this device. Not every op has a CUDA kernel.
    Raises:
        ConfigError: MM3DAD_OPS has another value.
        MissingPackageError: MM3DAD_OPS=native and the library is missing, does not load, or is older than the op.
    """
    choice = os.environ.get("MM3DAD_OPS", "auto")
    if choice not in CHOICES:
        raise ConfigError(f"MM3DAD_OPS must be one of {', '.join(CHOICES)}, got {choice!r}")
    if choice == "reference":
        return None
    trouble = load_library(device)
    if not trouble and op and not has_kernel(op, device):
        if device != "cpu":
            return None
        trouble = f"the native kernels are of an earlier version, without {op}"
    if not trouble:
        return torch.ops.mm3dad
    if choice == "native":
        raise MissingPackageError(f"MM3DAD_OPS=native, but {trouble}; {CURE}")
    return None


@cache
def load_library(device: str) -> str:
    """Load the kernels of one type of device once; return why they cannot be used, or an empty text."""
    if device not in LIBRARIES:
        return f"there are no native kernels for {device}"
    if device != "cpu" and (trouble := load_library("cpu")):
        return trouble
    if _has_kernels(device):  # pointnet2_ops, installed on its own, brings the same library
        return ""
    if not LIBRARIES[device].exists():
        lacks = device == "cpu" and not shutil.which(os.environ.get("CXX", "g++"))
        return f"the native kernels for {device} are not built" + (" (no C++ compiler is found: apt-get install g++)" if lacks else "")
    try:
        torch.ops.load_library(str(LIBRARIES[device]))
    except OSError as error:
        return f"the native kernels for {device} do not load ({str(error).splitlines()[0]})"
    return ""


@cache
def has_kernel(op: str, device: str) -> bool:
    """Whether the loaded library has a kernel of this name for this type of device."""
    return device in list_kernels().get(op, [])


def list_kernels() -> dict[str, list[str]]:
    """Return the loaded native kernels: name -> the types of device that they run on."""
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mm3dad::"))
    return {
        name.removeprefix("mm3dad::"): [
            device for device in LIBRARIES if torch._C._dispatch_has_kernel_for_dispatch_key(name, device.upper())
        ]
        for name in names
    }


def describe_ops() -> list[str]:
    """Return one line per kernel or per reason why the torch reference runs, for `mm3dad doctor --self`."""
    lines = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        try:
            found = native_kernels(device) is not None
        except (ConfigError, MissingPackageError) as error:
            return [str(error)]
        if found:
            names = [name for name, devices in list_kernels().items() if device in devices]
            lines.append(f"{device}: native {', '.join(names)}; every other op runs on its torch reference")
        else:
            asked = os.environ.get("MM3DAD_OPS") == "reference"
            lines.append(f"{device}: torch reference, {'because MM3DAD_OPS=reference' if asked else f'{load_library(device)}; {CURE}'}")
    return lines


def _has_kernels(device: str) -> bool:
    return any(device in devices for devices in list_kernels().values())
