"""What the processor can do beyond ordinary arithmetic."""

from __future__ import annotations

from functools import cache

import torch


@cache
def has_bfloat16_units() -> bool:
    """Say whether the processor has matrix units for bfloat16 (AMX), with which torch multiplies several times as fast."""
    return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_bf16"))
