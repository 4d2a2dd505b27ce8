"""What the processor can do beyond ordinary arithmetic, and what its memory allocator has to be told."""

from __future__ import annotations

import ctypes
from functools import cache

import torch


@cache
def has_bfloat16_units() -> bool:
    """Say whether the processor has matrix units for bfloat16 (AMX), with which torch multiplies several times as fast."""
    return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def return_memory() -> None:
    """Give freed memory back to the system: among small blocks that stay, glibc keeps the large ones that were freed, and grows.

    Nothing happens with another allocator.
    """
    if trim := getattr(_libc(), "malloc_trim", None):
        trim(0)


@cache
def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # no shared library of the process itself: not glibc
        return None
