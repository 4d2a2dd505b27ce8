"""The bank: what goes in, what is found, what it costs, and what survives a file."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.memory import Bank, select_coreset

SIDE, WIDTH = 6, 5


def make_features(seed, count=SIDE * SIDE, width=WIDTH):
    spread = torch.logspace(-1, 1, width)
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * spread + 3 * spread


def make_place(count=SIDE * SIDE):
    cell = torch.arange(count)
    return torch.stack([cell // SIDE, cell % SIDE], dim=1)


def build(samples=4, blocks=(), fraction=0.2, budget=2**31, seed=0):
    bank = Bank(blocks, budget, samples)
    for number in range(samples):
        bank.add(f"part/{number}", make_features(seed + number), make_place())
    bank.finish(fraction)
    return bank


def measure(queries, rows):
    return (queries.double()[:, None] - rows.double()[None]).norm(dim=2)


@pytest.mark.parametrize("blocks", [(), ((5, 1.0),), ((3, 1.0), (1, 0.1), (1, 2.0))])
def test_rows_are_the_features_on_one_scale(blocks):
    bank = build(blocks=blocks)
    everything = torch.cat([make_features(number) for number in range(4)])
    spread = everything.std(0, correction=0)
    unit, first = spread * WIDTH**0.5, 0
    for width, weight in blocks:
        unit[first : first + width] = spread[first : first + width].square().sum().sqrt() / weight
        first += width
    expected = (everything - everything.mean(0)) / unit
    torch.testing.assert_close(bank.rows.float(), expected, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(bank.normalise(make_features(2)), bank.rows_of(2), rtol=5e-3, atol=5e-3)
    assert torch.equal(bank.places_of(3), make_place()) and bank.ids == [f"part/{number}" for number in range(4)]


def test_a_channel_without_spread_does_not_amplify_rounding():
    bank = Bank(samples=2)
    for number in range(2):
        features = make_features(number)
        features[:, 2] = 7.0
        bank.add(str(number), features, make_place())
    bank.finish(0.5)
    assert bool(bank.rows.isfinite().all()) and float(bank.rows[:, 2].abs().max()) == 0
    constant = Bank(samples=1)
    constant.add("flat", torch.full((4, 3), 2.0), make_place(4))
    constant.finish(1.0)
    assert bool((constant.rows == 0).all()) and len(constant.coreset) == 4


def test_what_is_far_beyond_all_normals_stays_finite_and_far():
    """Normal parts all alike make a unit so small that half precision cannot hold a defect in it."""
    bank = Bank(samples=2)
    for number in range(2):
        bank.add(str(number), 1.0 + 1e-5 * make_features(number), make_place())
    bank.finish(0.5)
    queries = bank.normalise(1.0 + torch.tensor([[1e-5], [-1e3], [1e3]]) * torch.ones(3, WIDTH))
    distance = bank.match_coreset(queries, 1)[0][:, 0]
    assert bool(queries.isfinite().all()) and float(distance[1:].min()) > 100 * float(distance[0])
    grown = bank.reopen(1)
    grown.add("far", make_features(5), make_place())
    grown.finish(0.5)
    assert bool(grown.rows.isfinite().all())


@given(st.integers(1, 5), st.integers(0, 3))
def test_matches_are_the_nearest_rows_of_each_sample(samples, seed):
    bank = build(samples, seed=seed)
    queries = bank.normalise(make_features(99, count=7))
    chosen = list(range(samples))[::-1]
    distances, rows = bank.match_samples(queries, chosen)
    for column, sample in enumerate(chosen):
        expected = measure(queries, bank.rows_of(sample))
        torch.testing.assert_close(distances[:, column].double(), expected.amin(1), rtol=1e-4, atol=1e-5)
        assert torch.equal(rows[:, column], expected.argmin(1) + int(bank.start[sample]))


@pytest.mark.parametrize("window", [0, 1, 10])
def test_the_window_limits_the_place(window):
    bank = build(2)
    queries, place = bank.normalise(make_features(50)), make_place()
    distances, rows = bank.match_samples(queries, [0, 1], place, window)
    for sample in (0, 1):
        near = (place[:, None] - place[None]).abs().amax(2) <= window
        expected = measure(queries, bank.rows_of(sample)).masked_fill(~near, torch.inf)
        torch.testing.assert_close(distances[:, sample].double(), expected.amin(1), rtol=1e-4, atol=1e-5)
        assert int((bank.place.long()[rows[:, sample]] - place).abs().max()) <= window
    if window == 10:
        assert torch.equal(distances, bank.match_samples(queries, [0, 1])[0])


def test_a_window_with_no_row_in_it_searches_everywhere():
    bank = build(1)
    queries = bank.normalise(make_features(50, count=2))
    far = torch.tensor([[100, 100], [0, 0]])
    distances, _ = bank.match_samples(queries, [0], far, window=0)
    everywhere, _ = bank.match_samples(queries, [0])
    assert distances[0] == everywhere[0] and bool(distances.isfinite().all())


def test_the_coreset_is_searched_alike_by_torch_and_faiss():
    bank = build(fraction=0.3)
    queries = bank.normalise(make_features(50))
    assert len(bank.coreset) == int(0.3 * len(bank.rows)) == len(bank.coreset.unique())
    ours, theirs = bank.match_coreset(queries, 4), bank.match_coreset(queries, 4, backend="faiss")
    torch.testing.assert_close(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1]) and set(ours[1].flatten().tolist()) <= set(bank.coreset.tolist())
    expected = measure(queries, bank.rows[bank.coreset].float()).sort(1)
    torch.testing.assert_close(ours[0].double(), expected.values[:, :4], rtol=1e-4, atol=1e-5)


def test_more_neighbours_than_rows_gives_them_all():
    bank = build(1, fraction=0.1)
    assert bank.match_coreset(bank.rows_of(0), 100)[0].shape == (36, 3)
    assert bank.similar_samples(bank.descriptors[0], 100)[0].tolist() == [0]


def test_a_coreset_has_a_row_at_least_and_stays_in_its_samples():
    bank = build(3)
    assert len(bank.choose_coreset([1], 0.0)) == 1
    chosen = bank.choose_coreset([0, 2], 0.5, start=10**9)
    assert len(chosen) == 36 and not set(range(36, 72)) & set(chosen.tolist())
    assert len(bank.choose_coreset(range(3), 1.0)) == 108


def test_duplicates_do_no_harm():
    bank = Bank(samples=3)
    for number in range(3):
        bank.add(str(number), make_features(0), make_place())
    bank.finish(0.5)
    distances, rows = bank.match_samples(bank.rows_of(0), [1, 2])
    assert bool((distances == 0).all())
    assert torch.equal(rows, torch.stack([torch.arange(36) + 36, torch.arange(36) + 72], dim=1))


def test_the_most_similar_samples_come_first():
    bank = Bank(((WIDTH, 1.0),), samples=4)
    for number, shift in enumerate((0.0, 5.0, 1.0, 9.0)):
        bank.add(str(number), make_features(number) + shift, make_place())
    bank.finish(0.1)
    found, gaps = bank.similar_samples(bank.descriptors[0], 4)
    assert found.tolist() == [0, 2, 1, 3] and float(gaps[0]) == 0 and bool((gaps.diff() > 0).all())
    assert bank.similar_samples(bank.descriptors[0], 2, allowed=[3, 1])[0].tolist() == [1, 3]


def test_gaps_are_those_of_held_out_samples_and_reach_is_the_widest():
    bank = build(4)
    assert bank.reach == 0
    bank.measure_gaps([[0, 2], [1, 3]])
    gaps = measure(bank.descriptors, bank.descriptors)
    expected = [float(gaps[i, j].min()) for i, j in ((0, [1, 3]), (1, [0, 2]), (2, [1, 3]), (3, [0, 2]))]
    assert bank.gaps.tolist() == pytest.approx(expected, rel=1e-4) and bank.reach == float(bank.gaps.max())


def test_stated_bytes_are_those_it_takes():
    samples, count, width = 6, 300, 64
    bank = Bank(samples=samples)
    assert bank.planned_bytes == 0
    bank.add("0", make_features(0, count, width), make_place(count))
    stated = bank.planned_bytes
    assert stated == Bank.estimate_bytes(samples, count, width)
    for number in range(1, samples):
        bank.add(str(number), make_features(number, count, width), make_place(count))
    bank.finish(0.05)
    actual = sum(value.numel() * value.element_size() for value in bank.state("")[0].values())
    assert 0.9 * stated <= actual <= stated


@pytest.mark.parametrize("share", [0.7, 0.3, 0.05])
def test_a_small_budget_thins_each_sample_to_its_coreset(share):
    samples, count, width = 3, 100, 40
    budget = int(share * Bank.estimate_bytes(samples, count, width))
    bank = Bank((), budget, samples)
    full = [make_features(number, count, width) for number in range(samples)]
    for number, features in enumerate(full):
        bank.add(str(number), features, make_place(count))
    assert bank.planned_bytes <= budget
    bank.finish(0.05)
    kept = bank.rows_per_sample(count, width)
    assert 1 <= kept < count and len(bank.rows) == samples * kept
    # The descriptor is that of the whole sample, not of what the budget left of it.
    torch.testing.assert_close(bank.descriptors[0], (full[0].mean(0) - bank.shift) * bank.scale)
    chosen = select_coreset(full[1], kept).sort().values
    torch.testing.assert_close(bank.rows_of(1), (full[1][chosen] - bank.shift) * bank.scale, rtol=5e-3, atol=5e-3)
    assert torch.equal(bank.places_of(1), make_place(count)[chosen])


@pytest.mark.parametrize("share", [0.7, 0.3])
def test_what_thinning_may_cost_the_coreset(share):
    # Two greedy choices, one after the other: every row lies within the sum of their radii of a chosen one (triangle inequality).
    samples, count, width = 4, 150, 12
    full = [make_features(number, count, width) for number in range(samples)]
    keep = int(share * count)
    kept = [features[select_coreset(features, keep)] for features in full]
    thinning = max(float(torch.cdist(rows, part).amin(1).max()) for rows, part in zip(full, kept, strict=True))
    union = torch.cat(kept)
    chosen = union[select_coreset(union, 40)]
    choosing = float(torch.cdist(union, chosen).amin(1).max())
    everything = torch.cat(full)
    exact = everything[select_coreset(everything, 40)]
    radius, best = (float(torch.cdist(everything, rows).amin(1).max()) for rows in (chosen, exact))
    assert radius <= (thinning + choosing) * (1 + 1e-5)
    assert radius <= 1.5 * best, "on rows like these the thinned bank's coreset covers nearly as well as the exact one"


def test_a_budget_below_one_row_names_the_least():
    bank, least = Bank(budget=100, samples=10), 10 * (10 + 16 + 20)
    with pytest.raises(ConfigError, match=f"do not hold one row for each of 10 samples; raise it by {least - 100} bytes for each modality"):
        bank.add("0", make_features(0), make_place())
    assert Bank(budget=least, samples=10).rows_per_sample(36, WIDTH) == 1


def test_the_work_on_a_row_counts():
    row, least = 10 + 16 + 20, 5 * 4 + 100
    assert Bank(budget=3 * (row + least), samples=3, work=(4.0, 100.0)).rows_per_sample(36, WIDTH) == 1
    assert Bank(budget=3 * (20 + 7 * (row - 20 + least)), samples=3, work=(4.0, 100.0)).rows_per_sample(36, WIDTH) == 7
    assert Bank(budget=2**31, samples=3, work=(4.0, 100.0)).rows_per_sample(36, WIDTH) == 36


def test_samples_of_any_number_of_rows_and_more_of_them_than_were_announced():
    bank, counts = Bank(samples=3), [5, 36, 1, 20, 7]
    for number, count in enumerate(counts):
        bank.add(str(number), make_features(number)[:count], make_place()[:count])
    bank.finish(1.0)
    assert bank.start.diff().tolist() == counts and len(bank.rows) == len(bank.place) == sum(counts)
    for number, count in enumerate(counts):
        torch.testing.assert_close(bank.rows_of(number), bank.normalise(make_features(number)[:count]), rtol=5e-3, atol=5e-3)
        assert torch.equal(bank.places_of(number), make_place()[:count])


def test_what_a_bank_refuses():
    with pytest.raises(DataError, match="at least one normal sample, got none"):
        Bank().finish(0.1)
    bank = Bank(samples=2)
    bank.add("first", make_features(0), make_place())
    for value in (torch.nan, torch.inf, 1e6):
        broken = make_features(1)
        broken[3, 1] = value
        with pytest.raises(DataError, match="features of sample 'bad' must be finite and below 65504"):
            bank.add("bad", broken, make_place())
    with pytest.raises(DataError, match="features of sample 'wide' have 9 channels, expected 5"):
        bank.add("wide", make_features(1, width=9), make_place())
    bank.finish(0.1)
    assert bank.ids == ["first"] and len(bank.rows) == 36
    blocked = Bank(((2, 1.0), (2, 1.0)), samples=1)
    blocked.add("first", make_features(0), make_place())
    with pytest.raises(DataError, match="5 channels, their blocks 4"):
        blocked.finish(0.1)
    with pytest.raises(ModelError, match="holds 5 channels, got 9; use the backbone it was fitted with"):
        bank.normalise(make_features(1, width=9))


def test_state_round_trip():
    bank = build(blocks=((2, 1.0), (3, 0.5)))
    bank.work = 2.0, 9.0
    bank.measure_gaps([[0, 1], [2, 3]])
    bank.held += torch.arange(len(bank.rows))
    again = Bank.from_state("rgb.", *bank.state("rgb."))
    assert again.ids == bank.ids and again.blocks == bank.blocks and torch.equal(again.gaps, bank.gaps)
    assert (again.budget, again.work) == (bank.budget, bank.work)
    queries = make_features(50)
    assert torch.equal(again.normalise(queries), bank.normalise(queries))
    for call in (lambda b: b.match_samples(b.normalise(queries), [0, 3]), lambda b: b.match_coreset(b.normalise(queries), 3)):
        assert all(torch.equal(a, b) for a, b in zip(call(bank), call(again), strict=True))


def test_more_samples_go_into_a_saved_bank():
    saved = Bank.from_state("", *build(3).state(""))
    before = {name: value.clone() for name, value in saved.state("")[0].items()}
    grown = saved.reopen(2)
    for number in (3, 4):
        grown.add(f"part/{number}", make_features(number), make_place())
    grown.finish(0.2)
    assert grown.ids == [f"part/{number}" for number in range(5)] and grown.start.tolist() == [0, 36, 72, 108, 144, 180]
    assert torch.equal(grown.rows[:108], saved.rows) and torch.equal(grown.descriptors[:3], saved.descriptors)
    assert torch.equal(grown.scale, saved.scale) and torch.equal(grown.shift, saved.shift)
    torch.testing.assert_close(grown.rows_of(4), grown.normalise(make_features(4)), rtol=2e-3, atol=2e-3)
    assert len(grown.coreset) == int(0.2 * 180) and int(grown.coreset.max()) >= 108
    assert len(grown.held) == len(grown.place) == 180
    assert all(torch.equal(value, before[name]) for name, value in saved.state("")[0].items())  # the saved one is untouched


def test_a_grown_bank_keeps_to_its_budget():
    budget = Bank.estimate_bytes(3, 36, WIDTH)
    grown = build(3, budget=budget).reopen(3)
    for number in range(3, 6):
        grown.add(str(number), make_features(number), make_place())
    grown.finish(0.01)
    counts = grown.start.diff().tolist()
    assert Bank.estimate_bytes(6, max(counts), WIDTH) <= budget and min(counts) >= 10
    assert set(map(tuple, grown.rows_of(0).tolist())) <= set(map(tuple, build(3).rows_of(0).tolist()))


def test_reopening_for_the_first_samples_only():
    grown = build(4).reopen(1, keep=[0])
    grown.add("new", make_features(9), make_place())
    grown.finish(0.5)
    assert grown.ids == ["part/0", "new"] and torch.equal(grown.rows_of(0), build(4).rows_of(0))


def damage(name, change):
    tensors, values = build().state("rgb.")
    if change is None:
        del tensors[f"rgb.{name}"]
    else:
        tensors[f"rgb.{name}"] = change(tensors[f"rgb.{name}"])
    return tensors, values


@pytest.mark.parametrize("name", ["rows", "place", "start", "coreset", "descriptors", "held", "shift", "scale"])
def test_a_state_without_one_of_its_tensors(name):
    with pytest.raises(ModelError, match=f"the bank lacks 'rgb.{name}'"):
        Bank.from_state("rgb.", *damage(name, None))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rows", lambda t: t[:-1]),
        ("rows", lambda t: t[:, :-1]),
        ("rows", lambda t: t[0]),
        ("place", lambda t: t[:-1]),
        ("start", lambda t: t[:-1]),
        ("start", lambda t: t.flip(0)),
        ("start", lambda t: t[[0, 3, 2, 1, 4]]),
        ("coreset", lambda t: t[:0]),
        ("coreset", lambda t: t + 1000),
        ("coreset", lambda t: t - 1000),
        ("descriptors", lambda t: t[:-1]),
        ("descriptors", lambda t: t[:, :-1]),
        ("held", lambda t: t[:-1]),
        ("scale", lambda t: t[:-1]),
        ("shift", lambda t: t[:-1]),
    ],
)
def test_a_state_whose_parts_do_not_fit(name, change):
    with pytest.raises(ModelError, match="parts of the bank do not fit together"):
        Bank.from_state("rgb.", *damage(name, change))
