"""cif: few shots, the image alone, the published form, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

import mm3dad
from mm3dad import files
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.metrics import auroc
from mm3dad.nets.point_transformer import PREFIX, PointTransformer
from tests.methods.parts import make_cloud, make_sample, make_samples

SMALL = {"image_size": 64, "point_side": 24}


@pytest.fixture(scope="module")
def tests():
    return [*make_samples(4, first=50), *make_samples(4, first=60, defect="both")]


def create(**options):
    return mm3dad.create("cif", **{**SMALL, **options})


def image_auroc(detector, samples):
    labels = torch.tensor([sample.label for sample in samples])
    return auroc(torch.tensor([detector.predict(sample).score for sample in samples]), labels)


@pytest.mark.parametrize("shots", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"modalities": "rgb"}, {"reference": True}], ids=["both", "rgb", "reference"])
def test_few_shots_find_the_defects(shots, options, tests):
    detector = create(**options).fit(make_samples(shots))
    assert image_auroc(detector, tests) >= 0.9
    assert (detector.predict(tests[0]).threshold is None) == (shots == 1)


def test_rgb_alone_when_the_data_have_no_points():
    normal = make_samples(2, modalities=("rgb",))
    detector = create().fit(normal)
    prediction = detector.predict(normal[0])
    assert "rgb_map" in prediction.parts and "xyz_map" not in prediction.parts and len(detector.weights) == 1


def test_the_memory_holds_its_share_in_half_precision():
    detector = create(coreset=0.2).fit(make_samples(3))
    for part in detector._memory.values():
        assert part.rows.dtype == torch.float16 and len(part.rows) == pytest.approx(0.2 * 3 * 64, abs=len(part.hyperedges))
        assert sorted(part.ids.unique().tolist()) == list(range(len(part.hyperedges)))


def test_alpha_one_switches_message_passing_off(tests):
    normal = make_samples(2)
    assert create(alpha=1.0).fit(normal).predict(tests[0]).score == create(loops=0).fit(normal).predict(tests[0]).score


def test_background_scores_nothing():
    sample = make_sample(3)
    valid = sample.valid.clone()
    valid[:, 32:] = False
    half = replace(sample, valid=valid)
    detector = create().fit([half, replace(make_sample(4), valid=valid)])
    image = detector._describe(half, ("rgb", "xyz"))
    _, patches, _ = detector._score(image, detector._memory)
    for values in patches.values():
        grid = values.view(image.grid)
        assert bool((grid[:, 5:] == 0).all()) and bool((grid[:, :4] >= 0).all()) and float(grid[:, :4].max()) > 0


def test_centred_cells_keep_hubs_out_of_a_large_memory(tests):
    """FPFH cells all point one way: uncentred, a large memory joins most rows to few patches, and messages drown the defect."""
    detector = create(coreset=1.0, modalities="rgb,xyz").fit(make_samples(6))
    labels = torch.tensor([sample.label for sample in tests])
    found = torch.tensor([float(detector.predict(sample).parts["xyz_score"]) for sample in tests])
    assert auroc(found, labels) >= 0.9


def test_published_backbones_by_layout(tmp_path, tests):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True).state_dict(), tmp_path / "vit.pth")
        torch.save({"base_model": {PREFIX + key: value for key, value in PointTransformer().state_dict().items()}}, tmp_path / "mae.pth")
    options = {
        "backbone": "vit_tiny_patch16_224",
        "weights": str(tmp_path / "vit.pth"),
        "points": "point_mae",
        "centers": 16,
        "group_size": 16,
    }
    detector = create(**options, point_weights=str(tmp_path / "mae.pth"), layers=(11,)).fit(make_samples(2))
    assert detector._memory["rgb"].rows.shape[1] == 192 and detector._memory["xyz"].rows.shape[1] == 3 * 384
    assert detector.predict(tests[0]).score >= 0 and len(detector.weights) == 2


def test_a_memory_of_another_backbone_is_explained(tmp_path):
    create(layers=(2,)).fit(make_samples(1)).save(tmp_path / "model")
    model = files.read_json(tmp_path / "model" / "model.json")
    files.write_json(tmp_path / "model" / "model.json", model | {"config": model["config"] | {"layers": [3]}})
    with pytest.raises(ModelError, match="the memory of rgb holds 40 channels, got 112; use the backbone it was fitted with"):
        mm3dad.load(tmp_path / "model").predict(make_sample(1))


def test_errors():
    with pytest.raises(ConfigError, match="cif takes modalities rgb or rgb,xyz, got xyz; its hypergraph is built on the image"):
        create(modalities="xyz")
    with pytest.raises(ConfigError, match="option hyperedges must lie in 1"):
        create(hyperedges=0)
    with pytest.raises(DataError, match="has no rgb, which this cif model needs; the hypergraph is built on it"):
        create().fit(make_samples(1, modalities=("xyz",)))
    detector = create().fit(make_samples(1))
    with pytest.raises(DataError, match="has no xyz, which this cif model needs; complete it, or fit with modalities=rgb"):
        detector.predict(make_sample(1, modalities=("rgb",)))
    cloud = make_cloud(0)
    with pytest.raises(DataError, match="has no rgb"):
        detector.predict(cloud)
    sample = make_sample(0)
    with pytest.raises(DataError, match="no valid point"):
        detector.predict(replace(sample, valid=torch.zeros_like(sample.valid)))
