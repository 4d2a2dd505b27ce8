"""Rows of a mapped file: read as they are, and never kept in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mm3dad.memory import mapped
from mm3dad.memory.mapped import MappedRows


@pytest.fixture
def file(tmp_path):
    rows = torch.randn(3000, 24, generator=torch.Generator().manual_seed(0)).half()
    (tmp_path / "rows.f16").write_bytes(rows.numpy().tobytes())
    return tmp_path / "rows.f16", rows.float()


def resident(path):
    """Return the resident KiB of the map of a file, by the kernel's account."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        inside = line.endswith(str(path)) if "-" in line.split(" ")[0] else inside
        found += int(line.split()[1]) if inside and line.startswith("Rss:") else 0
    return found


def test_blocks_and_picks_are_the_rows(file, monkeypatch):
    path, rows = file
    monkeypatch.setattr(mapped, "READ_ROWS", 1024)  # a multiple of pages, and a last block that is none
    monkeypatch.setattr(mapped, "SCATTERED", 7)
    monkeypatch.setattr(mapped, "GAP", 100)  # two rows
    opened = MappedRows(path, *rows.shape)
    assert [len(block) for block in opened.blocks()] == [1024, 1024, 952]
    assert torch.equal(torch.cat(list(opened.blocks())), rows)
    for wanted in (torch.tensor([2999, 0, 0, 17, 5, 4, 3, 2]), torch.arange(3000), torch.empty(0, dtype=torch.int64)):
        assert torch.equal(opened.pick(wanted), rows[wanted])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux keeps account of each map")
def test_what_was_looked_at_does_not_stay_in_memory(file):
    path, rows = file
    opened = MappedRows(path, *rows.shape)
    opened._rows.sum()
    assert resident(path) >= rows.numel() * 2 >> 10
    for look in (lambda: opened.pick(torch.arange(0, 3000, 7)), lambda: list(opened.blocks())):
        look()
        assert resident(path) == 0


def test_a_file_that_is_replaced_is_read_on(file):
    path, rows = file
    opened = MappedRows(path, *rows.shape)
    (path.parent / "new").write_bytes(bytes(path.stat().st_size))
    (path.parent / "new").replace(path)
    assert torch.equal(torch.cat(list(opened.blocks())), rows)


@pytest.mark.parametrize("size", [0, 100, 3000 * 48 - 1, 3000 * 48 - 48, 3000 * 48 + 2])
def test_a_file_of_another_size_is_refused(file, size):
    path, rows = file
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError):
        MappedRows(path, *rows.shape)
