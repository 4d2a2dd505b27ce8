"""Memory that was freed among blocks that stay goes back to the system."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from mm3dad.ops.processor import return_memory


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_freed_memory_goes_back():
    large, small = [], []
    for _ in range(1000):
        large.append(torch.ones(25_000))
        small.append(torch.ones(100))
    before = resident()
    del large
    return_memory()
    assert resident() < before - 50e6
    assert all(bool((one == 1).all()) for one in small)
