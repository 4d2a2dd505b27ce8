"""rad beyond the contract: what is corrected and why, one class or many, banks on disk, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.types import Sample
from tests.methods.parts import make_sample, make_samples


def create(**options):
    return mm3dad.create("rad", image_size=64, **options)


def with_stain(sample, rows, columns):
    rgb = sample.rgb.clone()
    rgb[:, rows, columns] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    return replace(sample, rgb=rgb)


def test_a_defect_at_the_border_is_seen_where_the_published_form_is_blind():
    training, sample = make_samples(5), make_sample(70)
    broken = with_stain(sample, slice(0, 4), slice(0, 64))
    ours, published = create().fit(training), create(reference=True).fit(training)
    assert float(published.predict(broken).map[:4].max()) == 0
    top = ours.predict(broken).map
    assert float(top[:4].mean()) > 2 * float(top[20:].mean())


def test_zero_padding_damps_the_border_of_an_even_map():
    from mm3dad.scoring.maps import blur_5x5

    even = torch.ones(12, 12)
    assert float(blur_5x5(even).min()) == pytest.approx(1)
    assert float(blur_5x5(even, "constant")[0, 0]) < 0.55


def test_several_classes_share_one_bank():
    disc = make_samples(4, category="disc")
    both = create(neighbors=4).fit(make_samples(4) + disc)
    alone = create().fit(disc)
    sample = make_sample(75, "both", category="disc")
    assert both.predict(sample).score == pytest.approx(alone.predict(sample).score, rel=1e-5)


def test_more_neighbours_than_images_and_one_shot():
    one = create().fit(make_samples(1))
    assert one.predict(make_sample(5)).threshold is None and not one.predict(make_sample(5)).calibrated
    assert one.predict(make_sample(0)).score < 1e-3
    assert create(neighbors=10000).fit(make_samples(3)).predict(make_sample(9)).score > 0


def test_a_training_image_scores_near_zero_and_its_threshold_does_not():
    detector = create().fit(make_samples(4))
    assert detector.predict(make_sample(2)).score < 1e-3 < detector.predict(make_sample(2)).threshold


def test_validation_sets_the_threshold_and_nothing_else():
    plain, other = create().fit(make_samples(4)), create().fit(make_samples(4), validation=make_samples(3, first=30, defect="both"))
    sample = make_sample(50)
    assert other.predict(sample).threshold > plain.predict(sample).threshold
    assert other.predict(sample).score == plain.predict(sample).score


def test_a_bank_on_disk_scores_the_same_and_is_saved(tmp_path):
    disk = create(bank_folder=str(tmp_path / "bank")).fit(make_samples(4))
    disk.save(tmp_path / "model")
    loaded = mm3dad.load(tmp_path / "model")
    sample = make_sample(60, "both")
    assert disk.predict(sample).score == create().fit(make_samples(4)).predict(sample).score == loaded.predict(sample).score


def test_half_precision_moves_scores_by_less_than_a_thousandth():
    detector = create().fit(make_samples(4))
    exact = create().fit(make_samples(4))
    exact._bank.layers = [
        torch.stack([exact.extractor.describe([sample])[0].layers[layer] for sample in make_samples(4)]) for layer in range(2)
    ]
    for sample in (make_sample(60), make_sample(61, "both")):
        one, other = detector.predict(sample), exact.predict(sample)
        assert abs(one.score - other.score) < 1e-3 and float((one.map - other.map).abs().max()) < 1e-3


@pytest.mark.parametrize("layers", [(-1,), (0, -1)])
def test_other_backbones_by_name(layers, tmp_path):
    detector = create(backbone="test_vit", weights="random", layers=layers).fit(make_samples(3))
    detector.save(tmp_path)
    assert mm3dad.load(tmp_path).predict(make_sample(9)).score == detector.predict(make_sample(9)).score
    assert detector.weights[0]["name"] == "random"


def test_wrong_options_and_samples_are_explained(tmp_path):
    for options, text in (({"window": -1}, "window"), ({"neighbors": 0}, "neighbors"), ({"top": 2}, "top"), ({"map_size": 1}, "map_size")):
        with pytest.raises(ConfigError, match=f"option {text} must"):
            create(**options)
    with pytest.raises(ConfigError, match="layer_weights must be 2 finite"):
        create(layer_weights=(1, 2, 3)).fit(make_samples(2))
    points = [Sample(xyz=make_sample(1).xyz)]
    with pytest.raises(DataError, match="has no rgb"):
        create().fit(points)
    with pytest.raises(ModelError, match="rad is not fitted"):
        create().predict(make_sample(1))
