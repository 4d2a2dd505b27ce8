"""Flat banks."""

from __future__ import annotations

import pytest
import torch

from mm3dad.errors import DataError, ModelError
from mm3dad.memory.flat import FlatBank, balance_blocks


def make_bank(samples=3, patches=5, channels=4, seed=0, precision=torch.float16):
    generator = torch.Generator().manual_seed(seed)
    bank = FlatBank(precision)
    parts = [torch.randn(patches + i, channels, generator=generator) for i in range(samples)]
    for number, part in enumerate(parts):
        bank.add(f"s{number}", part)
    bank.seal()
    return bank, parts


def test_rows_keep_their_sample():
    bank, parts = make_bank()
    for number, part in enumerate(parts):
        assert torch.equal(bank.part(number), part.half().float())
    assert bank.owner.tolist() == [0] * 5 + [1] * 6 + [2] * 7


@pytest.mark.parametrize("precision", [torch.float16, torch.float32])
def test_a_row_of_the_bank_is_found_at_distance_zero(precision):
    bank, parts = make_bank(precision=precision)
    bank.rescale(torch.tensor([0.3, -1.0, 2.0, 0.1]), torch.tensor([0.7, 3.0, 0.01, 1.0]))
    distance, index = bank.match(bank.normalise(parts[1]))
    assert float(distance.max()) == 0 and index.tolist() == list(range(5, 11))


def test_match_equals_brute_force():
    bank, _ = make_bank(patches=40)
    queries = bank.normalise(torch.randn(30, 4, generator=torch.Generator().manual_seed(9)))
    distance, index = bank.match(queries)
    slow = (queries[:, None].double() - bank.rows[None].double()).norm(dim=2)
    torch.testing.assert_close(distance.double(), slow.min(1).values, rtol=1e-5, atol=1e-6)
    assert torch.equal(slow[torch.arange(30), index], slow.min(1).values)


def test_half_precision_changes_no_distance_that_matters():
    half, parts = make_bank(samples=4, patches=60, channels=150)
    single, _ = make_bank(samples=4, patches=60, channels=150, precision=torch.float32)
    queries = torch.randn(50, 150, generator=torch.Generator().manual_seed(5))
    found, exact = half.match(half.normalise(queries))[0], single.match(single.normalise(queries))[0]
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=0)
    assert half.rows.element_size() == 2 and parts


def test_leaving_a_sample_out():
    bank, _ = make_bank()
    thinned = bank.thin(torch.tensor([0, 6, 12]))
    assert thinned.without(1).owner.tolist() == [0, 2] and len(bank.rows) == 18
    only = bank.thin(torch.tensor([0, 1]))
    assert only.without(0) is only, "a bank is never empty"


def test_balanced_blocks_forget_their_unit():
    bank, _ = make_bank(patches=50)
    rows = bank.rows.float()
    shift, scale = balance_blocks(rows, (1, 3))
    spread = ((rows - shift) * scale).double().var(0, correction=0)
    assert float(spread[0]) == pytest.approx(1, rel=1e-4) and float(spread[1:].sum()) == pytest.approx(1, rel=1e-4)
    other = rows * torch.tensor([1000.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(other * balance_blocks(other, (1, 3))[1], rows * scale, rtol=1e-4, atol=1e-6)


def test_a_block_without_spread_keeps_its_unit():
    assert balance_blocks(torch.ones(5, 3), (2, 1))[1].tolist() == [1.0, 1.0, 1.0]


def test_state_round_trip_and_damage():
    bank, _ = make_bank()
    bank.rescale(torch.zeros(4), torch.full((4,), 2.0))
    state = bank.state("a.")
    back = FlatBank.from_state(state, "a.")
    assert all(torch.equal(getattr(back, name), getattr(bank, name)) for name in ("rows", "owner", "shift", "scale"))
    for name, value in (("rows", bank.rows[:0]), ("owner", bank.owner[1:]), ("scale", torch.ones(3)), ("shift", torch.ones(5))):
        with pytest.raises(ModelError, match="do not fit together; the model is damaged"):
            FlatBank.from_state(state | {f"a.{name}": value}, "a.")
    with pytest.raises(ModelError, match=r"lacks 'a.owner'"):
        FlatBank.from_state({key: value for key, value in state.items() if key != "a.owner"}, "a.")


def test_bad_input():
    bank = FlatBank()
    with pytest.raises(DataError, match="at least one normal sample, got none"):
        bank.seal()
    bank.add("one", torch.ones(2, 3))
    with pytest.raises(DataError, match="'two' have 4 channels, expected 3"):
        bank.add("two", torch.ones(2, 4))
    for value in (float("nan"), 1e6):
        with pytest.raises(DataError, match="'bad' must be finite"):
            bank.add("bad", torch.full((1, 3), value))
    bank.seal()
    with pytest.raises(ModelError, match="holds 3 channels, got 4; use the backbone"):
        bank.normalise(torch.ones(2, 4))
    assert float(bank.match(bank.normalise(torch.ones(1, 3)))[0]) == 0
