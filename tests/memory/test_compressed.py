"""Rows on disk: what the codes propose is compared exactly, and a damaged bank is refused."""

from __future__ import annotations

import json

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.memory.compressed import CompressedRows, Layout, build, merge
from mm3dad.memory.search import nearest_rows


def make_rows(count, channels=16, seed=0):
    random = torch.Generator().manual_seed(seed)
    centers = torch.randn(20, channels, generator=random)
    rows = centers[torch.randint(20, (count,), generator=random)] + 0.2 * torch.randn(count, channels, generator=random)
    return rows.half().float()


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    rows = make_rows(5000)
    assert build(folder, rows.split(700), rows[::2], Layout.for_rows(len(rows), 16)) == 5000
    return folder, rows


def test_finds_what_exact_search_finds(bank):
    folder, rows = bank
    queries = make_rows(60, seed=1) + 0.01
    opened = CompressedRows(folder, check=True)
    distances, index = opened.nearest(queries, 3)
    slow, _ = nearest_rows(queries, rows, 3)
    torch.testing.assert_close(distances, (queries[:, None] - rows[index]).norm(dim=2), atol=1e-6, rtol=1e-5)
    assert bool((distances.diff(dim=1) >= 0).all()) and bool((distances >= slow - 1e-6).all())
    assert float((distances[:, 0] <= slow[:, 0] + 1e-6).float().mean()) >= 0.95
    assert opened.measure_recall(queries) >= 0.95
    torch.testing.assert_close(opened.nearest_exact(queries, 3)[0], slow)


def test_all_candidates_are_the_exact_search(bank, tmp_path):
    rows = bank[1][:300]
    build(tmp_path, [rows], rows, Layout(cells=4, bytes=4, probe=4, candidates=300))
    queries = make_rows(20, seed=2)
    found, slow = CompressedRows(tmp_path).nearest(queries, 5), nearest_rows(queries, rows, 5)
    torch.testing.assert_close(found[0], slow[0])
    assert torch.equal(found[1], slow[1])


def test_k_beyond_the_probed_cells_reads_all(bank, tmp_path):
    rows = bank[1][:200]
    build(tmp_path, [rows], rows, Layout(cells=20, bytes=4, probe=1, candidates=1))
    found = CompressedRows(tmp_path).nearest(rows[:3], 200)
    assert torch.equal(found[1].sort(1).values, torch.arange(200).expand(3, 200))


def test_shards_merge_to_the_rows_in_order(bank, tmp_path):
    rows = bank[1]
    for name, part in (("a", rows[:900]), ("b", rows[900:1500])):
        build(tmp_path / name, [part], part, Layout.for_rows(len(part), 16))
    assert merge(tmp_path / "all", [tmp_path / "a", tmp_path / "b"], rows[:1500]) == 1500
    merged = CompressedRows(tmp_path / "all")
    assert torch.equal(torch.cat(list(merged.rows.blocks())), rows[:1500])
    with pytest.raises(DataError, match="at least one bank"):
        merge(tmp_path / "none", [], rows)


def test_repeats_bit_for_bit_and_in_any_blocks(bank, tmp_path):
    rows = bank[1][:1000]
    for name, size in (("a", 1000), ("b", 77)):
        build(tmp_path / name, rows.split(size), rows, Layout.for_rows(1000, 16))
    assert (tmp_path / "a/bank.json").read_bytes() == (tmp_path / "b/bank.json").read_bytes()


def test_one_row_and_duplicates(tmp_path):
    row = make_rows(1)
    build(tmp_path / "one", [row], row, Layout(1, 4))
    assert CompressedRows(tmp_path / "one").nearest(row, 1)[1].tolist() == [[0]]
    build(tmp_path / "same", [row.repeat(50, 1)], row.repeat(50, 1), Layout(2, 4))
    assert CompressedRows(tmp_path / "same").nearest(row, 2)[0].tolist() == [[0, 0]]


def test_bad_input_is_explained(bank, tmp_path):
    rows = bank[1][:100]
    with pytest.raises(ConfigError, match="do not fit 100 training rows of 16 channels"):
        build(tmp_path, [rows], rows, Layout(cells=4, bytes=5))
    for bad in (rows[:, :8], rows * float("nan"), rows * 1e9):
        with pytest.raises(DataError, match=r"rows must be \(M, 16\), finite"):
            build(tmp_path, [bad], rows, Layout(2, 4))
    with pytest.raises(DataError, match="at least one row"):
        build(tmp_path, [], rows, Layout(2, 4))
    assert not list(tmp_path.iterdir())
    for k in (0, 5001):
        with pytest.raises(ConfigError, match="k must be between 1 and the 5000 rows"):
            CompressedRows(bank[0]).nearest(rows, k)


def test_a_damaged_bank_is_refused(bank, tmp_path):
    rows = bank[1][:100]
    with pytest.raises(ModelError, match="holds no whole bank"):
        CompressedRows(tmp_path)
    build(tmp_path, [rows], rows, Layout(2, 4))
    whole = (tmp_path / "rows.f16").read_bytes()
    (tmp_path / "rows.f16").write_bytes(whole[:-2])
    with pytest.raises(ModelError, match="holds no whole bank"):
        CompressedRows(tmp_path)
    (tmp_path / "rows.f16").write_bytes(b"\1" + whole[1:])
    with pytest.raises(ModelError, match="damaged or foreign"):
        CompressedRows(tmp_path, check=True)
    (tmp_path / "rows.f16").write_bytes(whole)
    meta = json.loads((tmp_path / "bank.json").read_text())
    (tmp_path / "bank.json").write_text(json.dumps({**meta, "format": 9}))
    with pytest.raises(ModelError, match="has format 9, this version reads 1"):
        CompressedRows(tmp_path)
