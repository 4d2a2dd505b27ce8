"""The labelled memory: its probabilities are probabilities, and small defects are not forgotten (retrieval sheet, 3.7)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.memory import labelled
from mm3dad.memory.labelled import LabelledMemory, label_probability, mask_cells, region_means, similar_rows


def draw(rows, channels=6, seed=0):
    return F.normalize(torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed)), dim=1)


def one_hot(*labels):
    return F.one_hot(torch.tensor(labels), 2).float()


@settings(max_examples=40, deadline=None)
@given(queries=st.integers(1, 9), rows=st.integers(1, 9), seed=st.integers(0, 99), temperature=st.sampled_from([0.01, 0.2, 1.0, 50.0]))
def test_rows_sum_to_one(queries, rows, seed, temperature):
    values = one_hot(*[(seed + i) % 2 for i in range(rows)])
    found = label_probability(draw(queries, seed=seed), draw(rows, seed=seed + 1), values, temperature)
    torch.testing.assert_close(found.sum(1), torch.ones(queries))
    assert bool((found >= 0).all())


def test_two_keys_decide_by_nearness():
    keys, queries = draw(2), draw(200, seed=3)
    found = label_probability(queries, keys, one_hot(0, 1))[:, 1]
    distance = (queries[:, None] - keys).norm(dim=2)
    assert torch.equal(found > 0.5, distance[:, 1] < distance[:, 0])


def test_blocks_duplicates_and_no_query(monkeypatch):
    keys, values, queries = draw(5), one_hot(0, 1, 1, 0, 1), draw(7, seed=1)
    whole = label_probability(queries, keys, values)
    torch.testing.assert_close(label_probability(queries, keys.repeat(2, 1), values.repeat(2, 1)), whole)
    monkeypatch.setattr(labelled, "BLOCK_VALUES", 1)
    torch.testing.assert_close(label_probability(queries, keys, values), whole)
    assert label_probability(queries[:0], keys, values).shape == (0, 2)


def test_dropout_takes_out_the_query_itself_and_leaves_a_row():
    keys = draw(40)
    dropped = similar_rows(keys, keys, 0.95)
    assert bool(dropped.diagonal().all()) and bool((~dropped).any(1).all())
    for quantile in (0.0, 0.5, 1.0):
        assert bool((~similar_rows(keys, keys, quantile)).any(1).all())
        assert bool((~similar_rows(keys[:1], keys[:1], quantile)).any(1).all())
    assert bool(label_probability(keys, keys, one_hot(*[0, 1] * 20), dropped=similar_rows(keys, keys, 0.0)).isfinite().all())
    with pytest.raises(ConfigError, match="quantile must lie"):
        similar_rows(keys, keys, 1.5)


def test_small_defects_enter_by_default_and_are_forgotten_as_published():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[30:33, 41:44] = True
    anomalous, normal = mask_cells(mask, (8, 8))
    assert anomalous.nonzero().flatten().tolist() == [3 * 8 + 5] or int(anomalous.sum()) in (1, 2)
    assert not bool((anomalous & normal).any()) and int(normal.sum()) >= 60
    published, _ = mask_cells(mask, (8, 8), exact=True)
    assert not bool(published.any())


def test_large_defects_and_no_defect():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:32] = True
    for exact in (False, True):
        anomalous, normal = mask_cells(mask, (8, 8), exact)
        assert anomalous.view(8, 8)[:3].all() and normal.view(8, 8)[5:].all()
        empty, rest = mask_cells(torch.zeros(64, 64, dtype=torch.bool), (8, 8), exact)
        assert not bool(empty.any()) and bool(rest.all())
        full, none = mask_cells(torch.ones(64, 64, dtype=torch.bool), (8, 8), exact)
        assert bool(full.all()) and not bool(none.any())


def test_an_empty_region_is_zero():
    patches = draw(5)
    means = region_means(patches, torch.tensor([[True, False, True, False, False], [False] * 5]))
    torch.testing.assert_close(means, torch.stack([(patches[0] + patches[2]) / 2, torch.zeros(6)]))


def test_memory_goes_round_and_does_not_depend_on_order():
    rows = draw(4)
    items = [(rows[i], draw(9, seed=i), i % 2, torch.arange(9) == i if i % 2 else torch.zeros(9, dtype=torch.bool)) for i in range(4)]
    memories = []
    for order in (items, items[::-1]):
        memory = LabelledMemory()
        for descriptor, patches, label, anomalous in order:
            memory.add(descriptor, patches, label, anomalous, ~anomalous)
        memories.append(memory)
    query, patches = draw(1, seed=9)[0], draw(9, seed=8)
    again = LabelledMemory.from_state(memories[0].state())
    assert again.image_probability(query, 0.1) == memories[0].image_probability(query, 0.1)
    assert torch.equal(again.patch_probability(patches, 1), memories[0].patch_probability(patches, 1))
    torch.testing.assert_close(memories[1].patch_probability(patches, 1), memories[0].patch_probability(patches, 1))
    assert again.patch_labels == [0, 0, 1, 0, 0, 1]


def test_wrong_input_is_explained():
    keys = draw(3)
    for wrong in ((draw(2, 5), keys, one_hot(0, 1, 0)), (keys, keys, one_hot(0, 1)), (keys, keys[:0], one_hot(0)[:0])):
        with pytest.raises(ShapeError, match="must belong together"):
            label_probability(*wrong)
    with pytest.raises(ConfigError, match="temperature"):
        label_probability(keys, keys, one_hot(0, 1, 0), 0)
