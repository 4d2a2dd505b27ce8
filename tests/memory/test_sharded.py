"""A bank in shards answers as one that is whole."""

from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.files import write_tensors
from mm3dad.memory import FlatBank, sharded
from mm3dad.memory.compressed import CompressedRows, Layout, build
from mm3dad.memory.search import merge_nearest
from mm3dad.memory.sharded import Shard, ShardedRows, split_rows


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """A saved bank of three blocks and a bit in half precision, every tenth row of the first block again in the last."""
    generator = torch.Generator().manual_seed(0)
    bank = FlatBank()
    bank.add("a", torch.randn(3 * sharded.BLOCK + 100, 8, generator=generator))
    bank.seal()
    bank.rows[2 * sharded.BLOCK : 2 * sharded.BLOCK + 50] = bank.rows[:500:10]
    path = tmp_path_factory.mktemp("bank") / "tensors.safetensors"
    write_tensors(path, bank.state("rgb."))
    queries = torch.cat([torch.randn(20, 8, generator=generator), bank.rows[:40:10].float()])
    return bank, path, queries


def by_hand(queries, rows, k):
    """Sort everything, equal distances by index."""
    distances = torch.cdist(queries.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sort(dim=1, stable=True).indices[:, :k]


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("k", [1, 5])
def test_the_number_of_shards_changes_nothing(bank, parts, k):
    flat, path, queries = bank
    shards = split_rows(path, "rgb.rows", parts)
    assert len(shards) == min(parts, 4) and [shard.last for shard in shards[:-1]] == [shard.first for shard in shards[1:]]
    whole, cut = ShardedRows(split_rows(path, "rgb.rows", 1)), ShardedRows(shards)
    assert cut.count == len(flat.rows)
    for got, expected in zip(cut.nearest(queries, k), whole.nearest(queries, k), strict=True):
        assert torch.equal(got, expected)
    distances, rows = cut.nearest(queries, k)
    assert torch.equal(rows, by_hand(queries, flat.rows, k)) and not distances[20:, 0].any()
    if k == 1:
        assert all(torch.equal(got[:, 0], expected) for got, expected in zip((distances, rows), flat.match(queries), strict=True))


def test_more_neighbours_than_a_shard_has_rows(bank):
    flat, path, queries = bank
    rows = ShardedRows(split_rows(path, "rgb.rows", 4))
    assert torch.equal(rows.nearest(queries, 150)[1], by_hand(queries, flat.rows, 150))
    for k in (0, len(flat.rows) + 1):
        with pytest.raises(ConfigError, match=f"k must be between 1 and the {len(flat.rows)} rows, got {k}"):
            rows.nearest(queries, k)


def test_compressed_banks_are_shards_too(tmp_path):
    generator = torch.Generator().manual_seed(1)
    blocks = [torch.randn(count, 8, generator=generator) for count in (400, 70, 1)]
    for number, block in enumerate(blocks):
        build(tmp_path / str(number), [block], block, Layout.for_rows(*block.shape))
    rows = ShardedRows([Shard(str(tmp_path / str(number))) for number in range(3)])
    queries = torch.cat([blocks[0][:5], blocks[1][:5], blocks[2]]).half().float()
    distances, found = rows.nearest(queries, 2)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4, 400, 401, 402, 403, 404, 470] and not distances[:, 0].any()
    first = CompressedRows(tmp_path / "0").nearest(queries, 2)
    assert bool((distances <= first[0]).all())


def test_merging_in_groups_is_merging_once():
    generator = torch.Generator().manual_seed(2)
    parts, start = [], 0
    for count in (3, 1, 4, 2):
        distances, order = torch.randint(3, (6, count), generator=generator).float().sort(dim=1, stable=True)
        parts.append((distances, order + start))
        start += count
    for k in (1, 3, 10):
        once = merge_nearest(parts, k)
        twice = merge_nearest([merge_nearest(parts[:2], k), merge_nearest(parts[2:], k)], k)
        assert all(torch.equal(got, expected) for got, expected in zip(twice, once, strict=True))


def test_what_is_no_bank_is_said(bank, tmp_path):
    _, path, _ = bank
    with pytest.raises(DataError, match="at least one shard, got none"):
        ShardedRows([])
    with pytest.raises(ConfigError, match="at least one part, got 0"):
        split_rows(path, "rgb.rows", 0)
    with pytest.raises(ModelError, match="holds no rows 'xyz.rows'"):
        split_rows(path, "xyz.rows", 2)
    with pytest.raises(ModelError, match="must hold rows"):
        split_rows(path, "rgb.owner", 2)
    for broken in (tmp_path, tmp_path / "none", tmp_path / "text"):
        (tmp_path / "text").write_text("no bank")
        with pytest.raises(ModelError, match="holds no rows"):
            split_rows(broken, "rgb.rows", 2)
    with pytest.raises(ModelError, match="has no rows 24000 to 99999; the bank has changed"):
        Shard(str(path), "rgb.rows", 24000, 99999).open()
    with pytest.raises(ModelError, match="holds no whole bank"):
        Shard(str(tmp_path)).open()
