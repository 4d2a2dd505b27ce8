"""resad beyond the contract: what are references, several products, what training data it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

import mm3dad
from mm3dad.errors import ConfigError, DataError
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
        (make_samples(2, category="disc", modalities=("xyz",)), "has no rgb"),
    ):
        with pytest.raises(DataError, match=text):
            create().fit(samples)


def test_options_out_of_range():
    for name, value in (("draws", 0), ("codes", 0), ("alpha", 1.5), ("blocks", 0), ("epochs", 0), ("batch", 0), ("rate", 0)):
        with pytest.raises(ConfigError, match=name):
            create(**{name: value})
    with pytest.raises(ConfigError, match="multiple of 4 channels, got 6"):
        create(position=6).fit(auxiliary(1))
