"""resad beyond the contract: what are references, several products, what training data it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError
from mm3dad.methods._residual import Auxiliary, draw_references, join_cells, leave_references, train_residuals
from mm3dad.nets.residual_flow import ResidualFlow
from mm3dad.nets.training import TrainingRun
from tests.methods.parts import make_sample, make_samples


def create(**options):
    return mm3dad.create("resad", **{"image_size": 64, "epochs": 2, "warm": 1, "codes": 16} | options)


def auxiliary(count=3):
    return make_samples(count, category="disc") + make_samples(count, first=20, category="disc", defect="both")


@pytest.fixture(scope="module")
def fitted():
    return create().fit(auxiliary() + make_samples(2))


def test_references_are_of_the_products_without_defects(fitted):
    assert list(fitted._references) == ["plate"]
    grid = len(fitted._references["plate"][0]) // 2
    assert all(len(level) == 2 * grid for level in fitted._references["plate"])
    known = create().fit(auxiliary())
    assert list(known._references) == ["disc"] and len(known._references["disc"][0]) == 3 * grid


def test_a_sample_equal_to_a_reference_scores_low(fitted):
    assert fitted.predict(make_sample(0)).score < fitted.predict(make_sample(60, "both")).score


def test_several_products_keep_their_own_references():
    other = [replace(one, meta=replace(one.meta, category="other")) for one in make_samples(2, first=5)]
    detector = create().fit(auxiliary() + make_samples(2) + other)
    assert sorted(detector._references) == ["other", "plate"]
    stranger = replace(make_sample(3), meta=replace(make_sample(3).meta, category="third"))
    with pytest.raises(DataError, match="product 'third', and this model has references of other, plate"):
        detector.predict(stranger)


def test_validation_sets_the_threshold():
    detector = create().fit(auxiliary() + make_samples(2), validation=make_samples(3, first=30))
    assert detector.predict(make_sample(40)).threshold is not None


def test_training_data_it_refuses():
    bad = make_sample(20, "both", category="disc")
    for samples, text in (
        (make_samples(3), "no defective one"),
        ([bad], "no normal one"),
        ([*make_samples(2, category="disc"), replace(bad, mask=None)], "has no mask"),
        ([*make_samples(2, category="disc"), replace(bad, mask=bad.mask & False)], "has an empty mask"),
        ([*auxiliary()[:5], make_sample(9, modalities=("rgb",)), make_sample(9, modalities=("xyz",))], "a modality that all of them have"),
    ):
        with pytest.raises(DataError, match=text):
            create().fit(samples)


def test_options_out_of_range():
    for name, value in (("draws", 0), ("codes", 0), ("alpha", 1.5), ("blocks", 0), ("epochs", 0), ("batch", 0), ("rate", 0)):
        with pytest.raises(ConfigError, match=name):
            create(**{name: value})
    with pytest.raises(ConfigError, match="multiple of 4 channels, got 6"):
        create(position=6).fit(auxiliary(1))
    with pytest.raises(ConfigError, match="modalities"):
        create(modalities=("depth",))


def test_a_cloud_is_one_more_level(fitted):
    image = create(modalities=("rgb",)).fit(auxiliary() + make_samples(2))
    cloud = create().fit(
        make_samples(3, category="disc", modalities=("xyz",))
        + make_samples(3, first=20, category="disc", defect="both", modalities=("xyz",))
        + make_samples(2, modalities=("xyz",))
    )
    assert [len(one._references["plate"]) for one in (cloud, image, fitted)] == [1, len(image._tops), len(image._tops) + 1]
    sample = make_sample(60, "both")
    parts = [set(one.predict(sample).parts) for one in (cloud, image, fitted)]
    assert parts == [{"xyz_map"}, {"rgb_map"}, {"rgb_map", "xyz_map"}]
    found = fitted.predict(sample)
    assert torch.allclose(found.map, found.parts["rgb_map"] + found.parts["xyz_map"], atol=1e-5)
    with pytest.raises(DataError, match="has no xyz, which this resad model uses; complete it, or fit with modalities=rgb"):
        fitted.predict(make_sample(60, "both", modalities=("rgb",)))


def test_levels_of_both_modalities_have_residuals_of_one_size(fitted):
    read = [replace(one, levels=fitted._join(levels)) for levels, one in map(fitted._read, auxiliary())]
    scaled = [one.scale(fitted._scales) for one in read]
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for number, one in enumerate(scaled):
        references = join_cells([scaled[i] for i in draw_references(scaled, number, 4, generator)])
        drawn.append(leave_references(one.levels, references))
    for level in zip(*drawn, strict=True):
        assert 0.5 < float(torch.stack(level).mean()) < 2


def make_cells(far):
    """Six samples of one product, half of them with a defective cell; in one of these it lies `far` units off."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(6):
        rows, is_normal = torch.randn(16, 8, generator=generator), torch.ones(16, dtype=torch.bool)
        if number % 2:
            rows[3], is_normal[3] = far if number == 5 else 3.0, False
        made.append(Auxiliary([rows], is_normal, is_normal | True, "part", not number % 2))
    return made


def test_a_cell_far_off_does_not_outweigh_the_others():
    config, losses = create(epochs=4).config, []
    for far in (3.0, 1e3):
        run = TrainingRun()
        torch.manual_seed(0)
        train_residuals(ResidualFlow([8], 16, 2, 4, 0), make_cells(far), config, run, lambda *_: None)
        losses.append([row["loss"] for row in run.histories["residuals"].rows])
    assert all(0.2 < far / near < 5 for near, far in zip(*losses, strict=True))
