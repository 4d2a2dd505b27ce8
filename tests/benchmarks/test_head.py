"""The comparison of heads by the defects they are trained on."""

from __future__ import annotations

import pytest
import torch

import mm3dad
from benchmarks import head
from mm3dad.metrics import auroc
from mm3dad.run.prepare import prepare_synthetic

CATEGORY = "potato"
COUNTS = {"train": 4, "validation": 0, "good": 2, "defect": 1}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return prepare_synthetic(tmp_path_factory.mktemp("head") / "data", categories=[CATEGORY], size=64, counts=COUNTS, workers=1)


@pytest.fixture(scope="module")
def normals(tree):
    return list(mm3dad.open_dataset("synthetic", str(tree), CATEGORY, "train"))


@pytest.fixture(scope="module")
def residuals(normals):
    return head.Residuals(normals)


@pytest.mark.parametrize("name", head.DRAWN)
def test_a_defect_is_drawn_in_both_modalities_on_the_part(normals, name):
    made = head.DRAWN[name](normals[0], torch.Generator().manual_seed(0))
    for modality in head.MODALITIES:
        changed = (getattr(made, modality) != getattr(normals[0], modality)).any(0)
        assert changed.any()
        assert not (changed & ~made.mask).any()
    assert not (made.mask & ~head.find_part(normals[0])).any()


def test_without_training_a_cell_scores_its_distances_in_ordinary_units(normals, residuals):
    found = torch.cat([residuals.plain(residuals.measure(sample, number)) for number, sample in enumerate(normals)])
    assert found.mean() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("senses", head.SENSES)
def test_a_defect_may_be_in_one_modality_alone(normals, senses):
    made = head.alter(normals[0], head.draw_dual, senses, torch.Generator().manual_seed(0))
    changed = {name: (getattr(made, name) != getattr(normals[0], name)).any(0) for name in head.MODALITIES}
    assert {name for name, where in changed.items() if where.any()} == set(senses)
    assert torch.equal(made.mask, changed["rgb"] | changed["xyz"])
    assert not made.meta.paths


def test_heads_repeat_under_a_seed_and_part_drawn_defects(normals, residuals, monkeypatch):
    monkeypatch.setattr(head, "EPOCHS", 3)
    first, second = (head.train_head(residuals, normals, head.draw_noise, 12, 3) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    inputs, labels = head.draw_cells(residuals, normals, [0], 3, head.draw_noise, 9)
    with torch.no_grad():
        scores = first(inputs)[:, 0]
    assert auroc(scores, labels) > 0.8


def test_all_rows_are_measured_on_one_test_set(tree, monkeypatch):
    monkeypatch.setattr(head, "EPOCHS", 2)
    found = head.measure(tree, CATEGORY, 0, 6)
    assert list(found) == ["none", *head.DRAWN]
    assert all(0 <= row[name] <= 1 for row in found.values() for name in head.SHOWN)
    kinds = {sample.meta.defect for sample in mm3dad.open_dataset("synthetic", str(tree), CATEGORY, "test") if sample.label}
    assert all(set(row["pixel_ap_by_kind"]) == kinds for row in found.values())
