"""btf beyond the contract: what is corrected and why, one modality, one sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import DataError
from mm3dad.memory.flat import FlatBank
from mm3dad.methods.btf import BTF
from tests.methods.parts import make_sample, make_samples


def create(**options):
    return mm3dad.create("btf", **{"image_size": 64, "max_points": 600} | options)


def test_a_stain_and_a_dent_are_both_seen():
    detector = create().fit(make_samples(6))
    worst = max(detector.predict(sample).score for sample in make_samples(4, first=50))
    for defect in ("stain", "dent"):
        assert detector.predict(make_sample(61, defect)).score > worst


def remembered(unit, reference):
    """Distances between rows of 3 image channels and 2 point channels measured in another unit."""
    generator = torch.Generator().manual_seed(0)
    bank = FlatBank(torch.float32)
    bank.add("all", torch.rand(40, 5, generator=generator) * torch.tensor([1.0, 1.0, 1.0, unit, unit]))
    detector = BTF(reference=reference, coreset=1.0)
    detector._widths = [3, 2]
    detector._remember({"cell": bank}, lambda stage, done, total: None)
    return torch.pdist(bank.rows)


@pytest.mark.parametrize("reference", [False, True])
def test_balance_forgets_the_unit_of_a_modality(reference):
    # FPFH runs to 200 and image features as far as their network takes them: side by side, the larger numbers decide.
    small, large = remembered(1.0, reference), remembered(200.0, reference)
    change = float((large / large.mean() - small / small.mean()).abs().max())
    assert (change > 0.1) == reference


def with_hole(sample, at):
    xyz = sample.xyz.clone()
    xyz[:, at : at + 6, at : at + 6] = 0
    return replace(sample, xyz=xyz, valid=None)


def test_holes_dilute_a_cell_only_as_published():
    # Missing points are no defect: a hole as wide as half a cell must not move the cell's features, as zeros averaged in do.
    sample = make_sample(5)
    drift = []
    for reference in (False, True):
        detector = create(reference=reference, modalities="xyz").fit([sample])
        full, holed = (detector._describe(one)["cell"].features for one in (sample, with_hole(sample, 28)))
        drift.append(float((full - holed).norm() / full.norm()))
    assert drift[0] < 0.5 * drift[1]


def test_published_blur_has_256_levels():
    training, sample = make_samples(3), make_sample(60, "both", size=(64, 64))
    levels = [len(create(reference=reference).fit(training).predict(sample).map.unique()) for reference in (False, True)]
    assert levels[1] <= 256 < levels[0]


@pytest.mark.parametrize("modality", ["rgb", "xyz"])
def test_one_modality_alone(modality):
    detector = create(modalities=modality).fit(make_samples(3))
    other = {"rgb": "xyz", "xyz": "rgb"}[modality]
    assert detector.predict(make_sample(5, modalities=(modality,))).score > 0
    with pytest.raises(DataError, match=f"has no {modality}, which this btf model uses; .* modalities={other}"):
        detector.predict(make_sample(5, modalities=(other,)))


def test_a_training_set_that_lacks_a_modality_here_and_there_is_refused():
    with pytest.raises(DataError, match=r"'train/good/001' has no xyz, which this btf model uses; complete it"):
        create().fit([make_sample(0), make_sample(1, modalities=("rgb",))])


def test_one_sample_and_loading(tmp_path):
    detector = create().fit(make_samples(1))
    found = detector.predict(make_sample(60, "both"))
    assert found.threshold is None and found.score > 0
    detector.save(tmp_path)
    assert mm3dad.load(tmp_path).predict(make_sample(60, "both")).score == found.score


def test_bank_is_in_half_precision_and_counts_its_bytes():
    detector = create().fit(make_samples(2))
    rows = detector._banks["cell"].rows
    assert rows.dtype == torch.float16 and detector.bank_bytes >= rows.numel() * 2
