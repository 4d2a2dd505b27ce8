from __future__ import annotations

import math

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, TrainingError
from mm3dad.methods import glfm
from mm3dad.metrics import auroc
from mm3dad.nets.point_transformer import PointTransformer
from mm3dad.types import Sample
from tests.methods.parts import make_cloud, make_sample, make_samples

SMALL = {"max_points": 400, "centers": 32, "group_size": 16, "dim": 16, "depth": 2, "epochs": 1, "steps": 4}


def create(**options):
    return mm3dad.create("glfm", **SMALL | options)


@pytest.fixture(scope="module")
def fitted():
    return create().fit(make_samples(4, modalities=("xyz",)))


def test_stage_one_changes_the_extractor_and_its_loss_falls():
    samples = make_samples(4)
    detector = create(epochs=6, steps=20, rate=3e-3).fit(samples)
    rows = detector.training.histories["stage1"].rows
    assert set(rows[0]) == {"focal", "dice", "loss"} and rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    untrained = create(epochs=0).fit(samples)
    assert not untrained.training.histories
    assert not torch.equal(detector._net.norm.weight, untrained._net.norm.weight)


def test_one_model_of_two_kinds_of_part_routes_each_to_its_own_bank():
    samples = make_samples(4) + make_samples(4, category="ridge")
    detector = create().fit(samples)
    assert len(detector._banks.banks) == 2
    for category in ("plate", "ridge"):
        tests = [make_sample(60, category=category), make_sample(61, "dent", category=category)]
        good, bad = detector.predict_all(tests)
        assert bad.score > good.score
    assert len(create(prototypes=3).fit(samples)._banks.banks) == 3
    assert len(create(prototypes=30).fit(samples)._banks.banks) == 8


def test_clouds_without_a_grid_score_by_their_mean():
    detector = create().fit([make_cloud(seed) for seed in range(4)])
    good, bad = [make_cloud(seed) for seed in range(60, 64)], [make_cloud(seed, defect="dent") for seed in range(70, 74)]
    predictions = detector.predict_all([*good, *bad])
    assert auroc(torch.tensor([one.score for one in predictions]), torch.tensor([0] * 4 + [1] * 4)) == 1
    for prediction, sample in zip(predictions, [*good, *bad], strict=True):
        assert prediction.map.shape == sample.size
        assert prediction.score == pytest.approx(float(prediction.map[sample.valid].mean()), rel=1e-5)


def test_a_point_mae_checkpoint_is_adapted_and_kept_in_the_model(monkeypatch, tmp_path):
    torch.manual_seed(0)
    small = {"depth": 2, "dim": 24, "heads": 2}
    told = [{"name": "point_mae", "sha256": "0", "licence": "not stated"}]
    monkeypatch.setattr(glfm, "load_point_net", lambda path: (PointTransformer(**small).requires_grad_(False), told))
    monkeypatch.setattr(glfm, "MAE_DEPTH", 2)
    detector = create(points="point_mae", layers="0,1", rate=1e-3).fit(make_samples(3))
    assert detector.weights == told and isinstance(detector._net, PointTransformer)
    assert not detector._net.training and not any(p.requires_grad for p in detector._net.parameters())
    monkeypatch.setattr(glfm, "PointTransformer", lambda: PointTransformer(**small))
    loaded = mm3dad.load(detector.save(tmp_path / "model"))
    sample = make_sample(60, "dent")
    assert torch.equal(loaded.predict(sample).map, detector.predict(sample).map) and loaded.weights == told


def test_reference_uses_the_published_stretch_and_blur():
    samples = make_samples(3)
    plain, published = (create(reference=value).fit(samples).predict(make_sample(60, "dent")) for value in (False, True))
    assert len(published.map.unique()) <= 256 < len(plain.map.unique())


def test_few_samples_and_thresholds():
    one = create().fit(make_samples(1))
    assert one.predict(make_sample(60)).threshold is None
    judged = create().fit(make_samples(3), validation=make_samples(2, first=20))
    assert judged.predict(make_sample(60)).calibrated
    held = create(coreset=1.0).fit(make_samples(3))
    assert held._threshold > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 10}, "dim must be divisible by the 4"),
        ({"layers": "0,2"}, "blocks 0 to 1"),
        ({"layers": ""}, "blocks 0 to 1"),
        ({"epochs": -1}, "epochs must lie in"),
        ({"points": "small"}, "points must be one of fpfh, point_mae"),
    ],
)
def test_settings_out_of_range(options, words):
    with pytest.raises(ConfigError, match=words):
        create(**options)


def test_bad_samples(fitted):
    with pytest.raises(DataError, match="has no xyz, and glfm sees points alone"):
        fitted.predict(make_sample(60, modalities=("rgb",)))
    empty = Sample(xyz=torch.zeros(3, 20, 20))
    few = Sample(xyz=torch.zeros(3, 20, 20).index_fill(1, torch.tensor([3]), 0.5))
    few.valid[3, 10:] = False
    few = Sample(xyz=few.xyz * few.valid)
    for sample, count in ((empty, 0), (few, 10)):
        with pytest.raises(DataError, match=f"has {count} valid points on the part, fewer than one group of 16"):
            fitted.predict(sample)


def test_a_training_that_diverges_is_named():
    detector = create()
    detector._open_net().embed.weight.data.fill_(math.inf)
    with pytest.raises(TrainingError, match="stage I diverged in epoch 1: the loss became nan"):
        detector._adapt([sample.xyz.flatten(1).T[sample.valid.flatten()] for sample in make_samples(2)], lambda *_: None)
