"""patchcore beyond the contract: either modality, what is corrected, one sample, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.metrics import auroc
from tests.methods.parts import SMALL, make_cloud, make_sample, make_samples


def create(**options):
    return mm3dad.create("patchcore", **{"image_size": 64, "max_points": 600} | options)


@pytest.mark.parametrize(("modality", "defect"), [("rgb", "stain"), ("xyz", "dent")])
def test_each_modality_alone(modality, defect):
    detector = create(modalities=modality).fit(make_samples(6, modalities=(modality,)))
    good, bad = make_samples(4, first=50, modalities=(modality,)), make_samples(4, first=60, defect=defect, modalities=(modality,))
    scores = torch.tensor([detector.predict(sample).score for sample in good + bad])
    assert float(auroc(scores, torch.tensor([0] * 4 + [1] * 4))) >= 0.9


def test_takes_what_the_data_have():
    points = create().fit(make_samples(2, modalities=("xyz",)))
    with pytest.raises(DataError, match=r"has no xyz, which this patchcore model uses; complete it, or fit with modalities=rgb"):
        points.predict(make_sample(5, modalities=("rgb",)))
    both = create().fit(make_samples(2))
    assert both.predict(make_sample(5, modalities=("rgb",))).score == both.predict(make_sample(5)).score


def test_published_scores_are_squares():
    # Squares keep the order of patches, but neither triangle inequality nor unit: a threshold read off them cannot be compared.
    training, sample = make_samples(3), make_sample(60, "stain")
    options = {"dimension": 16, "coreset": 1.0, "smooth": 0}
    ours, published = create(**options).fit(training), create(reference=True, **options).fit(training)
    assert published.predict(sample).score == pytest.approx(ours.predict(sample).score ** 2, rel=1e-2)


def test_a_training_sample_scores_zero_and_its_threshold_does_not():
    detector = create(coreset=1.0).fit(make_samples(4))
    found = detector.predict(make_sample(2))
    assert found.score == 0 < found.threshold and found.calibrated and not found.is_anomaly


def test_one_sample_gives_scores_and_no_threshold():
    found = create().fit(make_samples(1)).predict(make_sample(60, "both"))
    assert found.score > 0 and found.threshold is None and found.is_anomaly is None and not found.calibrated


def test_validation_sets_the_threshold_alone():
    plain, checked = create().fit(make_samples(4)), create().fit(make_samples(4), validation=make_samples(5, first=20))
    sample = make_sample(60)
    assert plain.predict(sample).score == checked.predict(sample).score
    assert checked.predict(sample).threshold == max(checked.predict(other).score for other in make_samples(5, first=20))


def test_coreset_has_its_share_and_follows_the_seed():
    training = make_samples(3)
    rows = create(coreset=1.0).fit(training)._banks["rgb"].rows
    few = create(coreset=0.1).fit(training)._banks["rgb"]
    assert len(few.rows) == int(0.1 * len(rows)) and few.rows.dtype == torch.float16
    other = create(coreset=0.1, seed=5).fit(training)._banks["rgb"]
    assert not torch.equal(few.rows[0], other.rows[0])


def test_reweighting_raises_no_score():
    training, sample = make_samples(3), make_sample(60, "stain")
    plain, weighed = (create(neighbors=count).fit(training).predict(sample) for count in (1, 9))
    assert 0 < weighed.score < plain.score and torch.equal(weighed.map, plain.map)


def test_features_kept_on_disk_change_nothing(tmp_path):
    from mm3dad.files import write_json

    write_json(tmp_path / "image.json", [1])
    training = make_samples(3)
    training = [replace(s, meta=replace(s.meta, paths={"rgb": str(tmp_path / "image.json")})) for s in training]
    plain = create().fit(training).predict(training[1])
    folder = tmp_path / "cache"
    for _ in range(2):
        found = create(feature_cache=str(folder)).fit(training).predict(training[1])
        assert found.score == plain.score and torch.equal(found.map, plain.map)
    assert len(list(folder.rglob("*.safetensors"))) == 3
    create(feature_cache=str(folder), dimension=16).fit(training)
    assert len(list(folder.rglob("*.safetensors"))) == 6


def test_mixed_sizes_share_a_bank():
    training = [make_sample(0), make_sample(1, size=(48, 96)), make_sample(2, size=(90, 70))]
    assert create().fit(training).predict(make_sample(5, size=(40, 40))).map.shape == (40, 40)


def test_bad_input(tmp_path):
    with pytest.raises(ConfigError, match="patchcore looks at one modality, got modalities=rgb,xyz; choose one, or use btf"):
        create(modalities="rgb,xyz")
    for name, value in (("coreset", 2), ("neighbors", 0), ("dimension", -1), ("image_size", 8), ("modalities", "depth")):
        with pytest.raises(ConfigError, match=name):
            create(**{name: value})
    with pytest.raises(DataError, match="cloud without a grid"):
        create().fit([make_cloud(0)])
    empty = make_sample(0, modalities=("xyz",))
    with pytest.raises(DataError, match="no valid point"):
        create().fit([replace(empty, xyz=torch.zeros_like(empty.xyz), valid=None)])
    folder = create().fit(make_samples(2)).save(tmp_path / "model")
    other = mm3dad.load(folder)
    other._made["rgb"] = create(backbone="test_vit", weights="random", layers=(-1,))._extractor("rgb")
    with pytest.raises(ModelError, match="use the backbone it was fitted with"):
        other.predict(make_sample(5))
    assert SMALL["image_size"] == 64
