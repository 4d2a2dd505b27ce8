"""muscv2: a set judges itself; what order, subsets, layers and small sets do to it, and what it refuses."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import timm
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.methods.muscv2 import _salient
from mm3dad.metrics import auroc
from mm3dad.nets.point_transformer import PREFIX, PointTransformer
from mm3dad.scoring import mutual_scores
from tests.methods.parts import make_cloud, make_sample, make_samples

SMALL = {"image_size": 64, "centers": 32, "group_size": 16, "max_points": 600}


@pytest.fixture(scope="module")
def tests():
    return [*make_samples(5, first=50), *make_samples(4, first=60, defect="both")]


def create(**options):
    return mm3dad.create("muscv2", **{**SMALL, **options}).fit()


def image_auroc(predictions, samples):
    return auroc(torch.tensor([one.score for one in predictions]), torch.tensor([sample.label for sample in samples]))


@pytest.mark.parametrize("modalities", ["rgb", "xyz", "rgb,xyz"])
@pytest.mark.parametrize(
    "options", [{}, {"enhance": False}, {"rescore": False}, {"aggregate": False}, {"reference": True, "rescore": False}], ids=str
)
def test_every_modality_and_switch_finds_the_defects(modalities, options, tests):
    predictions = create(modalities=modalities, **options).predict_all(tests)
    # The published score is the maximum of an unsmoothed map, which a grain of the texture may hold.
    assert image_auroc(predictions, tests) >= (0.8 if options.get("reference") else 0.9)
    assert {name for name in predictions[0].parts if name.endswith("_map")} == {f"{name}_map" for name in modalities.split(",")}
    assert all(one.threshold is None and one.is_anomaly is None and not one.calibrated for one in predictions)


def test_each_sample_is_most_like_itself(tests):
    """As published, the salient features of flat groups are shorter than others: re-scoring then takes another sample's score."""

    def favourites(published):
        detector = create(modalities="xyz", reference=published)
        found = [detector._source.describe(sample, None) for sample in tests]
        scores = detector._score_set(found)["xyz"]
        rows = torch.stack([_salient(one, {"xyz": row}, published) for one, row in zip(found, scores, strict=True)])
        return (rows @ rows.T).argmax(1).tolist()

    assert favourites(False) == list(range(len(tests))) != favourites(True)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("reference", [False, True])
def test_smallest_sets(count, reference, tests):
    predictions = create(reference=reference).predict_all(tests[-count:])
    assert len(predictions) == count
    assert all(0 <= one.score <= 1 and bool(one.map.isfinite().all()) for one in predictions)


@pytest.mark.parametrize("subsets", [1, 3])
def test_order_changes_nothing_to_the_last_bit(subsets, tests):
    detector = create(subsets=subsets)
    order = torch.randperm(len(tests), generator=torch.Generator().manual_seed(1)).tolist()
    straight, shuffled = detector.predict_all(tests), detector.predict_all([tests[i] for i in order])
    for position, i in enumerate(order):
        assert shuffled[position].score == straight[i].score and torch.equal(shuffled[position].map, straight[i].map)


def test_subsets_are_drawn_from_ids_alone(tests):
    """A split that follows the defect folders would tell how many defects each subset holds."""
    detector, seen = create(subsets=3, seed=4), []
    inner = detector._score_set
    detector._score_set = lambda found: seen.append([one.sample for one in found]) or inner(found)
    detector.predict_all(tests)
    drawn = sorted((sample.meta.id for sample in tests), key=lambda name: hashlib.sha256(f"4/{name}".encode()).digest())
    assert seen == [drawn[part::3] for part in range(3)]
    relabelled = [replace(sample, label=1 - sample.label, mask=None) for sample in tests]
    before, after = detector.predict_all(tests), detector.predict_all(relabelled)
    assert [one.score for one in before] == [one.score for one in after]
    other = create(subsets=3, seed=5).predict_all(tests)
    assert [one.score for one in other] != [one.score for one in before]


def test_subsets_are_scored_apart(tests):
    detector = create(subsets=2, rescore=False, modalities="rgb")
    order = sorted(range(len(tests)), key=lambda i: hashlib.sha256(f"0/{tests[i].meta.id}".encode()).digest())
    together = detector.predict_all(tests)
    for part in range(2):
        members = order[part::2]
        alone = create(rescore=False, modalities="rgb").predict_all([tests[i] for i in members])
        for i, one in zip(members, alone, strict=True):
            assert torch.allclose(one.map, together[i].map, atol=1e-6)


def test_scores_are_the_mean_over_layers(tests):
    detector = create(modalities="rgb", rescore=False, reference=True)
    found = [detector._source.describe(sample, None) for sample in tests]
    scores = detector._score_set(found)["rgb"]
    layers = [mutual_scores(torch.stack([one.layers["rgb"][level] for one in found]).float()) for level in range(2)]
    assert torch.allclose(scores, torch.stack(layers).mean(0), atol=1e-6)
    assert all(layer.dtype == torch.float16 for layer in found[0].layers["rgb"])


def test_published_backbones_by_layout(tmp_path, tests):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("vit_base_patch8_224", dynamic_img_size=True).state_dict(), tmp_path / "vit.pth")
        torch.save({"base_model": {PREFIX + key: value for key, value in PointTransformer().state_dict().items()}}, tmp_path / "mae.pth")
    detector = create(
        backbone="dino_vitb8", weights=str(tmp_path / "vit.pth"), points="point_mae", point_weights=str(tmp_path / "mae.pth"), image_size=32
    )
    found = detector._source.describe(tests[0], None)
    assert [layer.shape for layer in found.layers["rgb"]] == [(16, 768)] * 3
    assert [layer.shape for layer in found.layers["xyz"]] == [(32, 384)] * 3
    assert detector._source.images.extractor.layers == (3, 7, 11) and len(detector.weights) == 2
    assert len(detector.predict_all(tests[:3])) == 3


def test_clouds_without_a_grid():
    clouds = [make_cloud(seed, count=400 + 20 * seed) for seed in range(4)]
    for cloud, one in zip(clouds, create().predict_all(clouds), strict=True):
        assert one.map.shape == cloud.size and bool(one.map.isfinite().all())


def test_a_single_sample_is_explained(tests):
    for detector in (create(), create(modalities="rgb")):
        for call in (lambda d=detector: d.predict(tests[0]), lambda d=detector: d.predict_all(tests[:1])):
            with pytest.raises(DataError, match=r"transductive: it judges each sample of a set by the others; call predict_all\(samples\)"):
                call()
    with pytest.raises(DataError, match="2 or more in each of 4 subsets, got 6"):
        create(subsets=4).predict_all(tests[:6])
    with pytest.raises(ModelError, match="not fitted"):
        mm3dad.create("muscv2", **SMALL).predict_all(tests)


def test_odd_sets_are_explained(tests):
    detector = create()
    with pytest.raises(DataError, match=r"samples of a set must have one size, got \(64, 64\) and \(48, 96\) .*; resize them"):
        detector.predict_all([tests[0], make_sample(1, size=(48, 96))])
    lacking = replace(tests[1], xyz=None, valid=None)
    for odd in ([tests[0], lacking], [lacking, tests[0]]):
        with pytest.raises(DataError, match=r"'train/good/051' has no xyz.*; complete it, or set modalities=rgb"):
            detector.predict_all(odd)
    assert len(create(modalities="rgb").predict_all([tests[0], lacking])) == 2
    with pytest.raises(ConfigError, match="modalities must be of rgb, xyz"):
        create(modalities="depth")
    with pytest.raises(ConfigError, match="option subsets must lie in 1"):
        create(subsets=0)
