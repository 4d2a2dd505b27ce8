"""m3dm beyond the contract: what is corrected and why, the decision layer, the fusion network, published encoders."""

from __future__ import annotations

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError
from mm3dad.memory.flat import FlatBank
from mm3dad.methods.m3dm import M3DM
from mm3dad.metrics import auroc
from mm3dad.nets.point_transformer import PointTransformer
from tests.methods.parts import make_sample, make_samples


def create(**options):
    return mm3dad.create("m3dm", **{"image_size": 64, "max_points": 600} | options)


def full_banks(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    banks = {}
    for name, channels, unit in (("xyz", 5, scale), ("rgb", 7, 1.0)):
        banks[name] = FlatBank(torch.float32)
        for number in range(2):
            banks[name].add(str(number), torch.rand(50, channels, generator=generator) * unit)
    return banks


def sealed_banks(scale=1.0):
    banks = full_banks(scale)
    for bank in banks.values():
        bank.seal()
    return banks


@pytest.mark.parametrize("reference", [False, True])
def test_own_constants_forget_the_unit_of_the_features(reference):
    # Published: both banks are divided by the deviation of the image bank, so the unit of the point features decides their weight.
    found = []
    for scale in (1.0, 1000.0):
        banks = sealed_banks(scale)
        M3DM(reference=reference)._normalise(banks)
        found.append(torch.pdist(banks["xyz"].rows).mean())
    assert float(found[1] / found[0]) == pytest.approx(1000 if reference else 1, rel=1e-3)


def test_row_counts():
    for reference, counts in ((True, (20, 4)), (False, (20, 20))):
        banks = M3DM(reference=reference, coreset=0.2)._remember(full_banks(), lambda stage, done, total: None)
        assert (len(banks["xyz"].rows), len(banks["rgb"].rows)) == counts


def judged_samples(unit):
    generator = torch.Generator().manual_seed(3)
    draws = torch.rand(9, 2, generator=generator) + 1
    return [
        ({"xyz": float(a) * unit, "rgb": float(b)}, {"xyz": torch.full((4, 4), float(a) * unit), "rgb": torch.full((4, 4), float(b))})
        for a, b in draws
    ]


@pytest.mark.parametrize(("reference", "changes"), [(False, False), (True, True)])
def test_decision_layer_forgets_the_unit_of_a_modality(reference, changes):
    # Published weights 1 and 0.1 suit the published features; with others, the modality of larger numbers decides alone.
    shares = []
    for unit in (1.0, 50.0):
        detector = M3DM(reference=reference)
        detector._banks = sealed_banks()
        detector._calibrate(judged_samples(unit))
        weights = detector._decision * torch.tensor([unit, 1.0])
        shares.append(float(weights[0, 1] / weights[0].sum()))
    assert (abs(shares[0] - shares[1]) > 0.005) == changes
    assert not changes or shares[1] < 1e-4


def test_scores_combine_as_the_decision_says():
    detector = create().fit(make_samples(4))
    found = detector.predict(make_sample(60, "both"))
    image, _ = detector._decision
    expected = float(image[0]) * float(found.parts["xyz_score"]) + float(image[1]) * float(found.parts["rgb_score"])
    assert found.score == pytest.approx(expected, rel=1e-5) and bool((detector._decision > 0).all())


def test_a_stain_and_a_dent_are_both_seen():
    detector = create().fit(make_samples(6))
    worst = max(detector.predict(sample).score for sample in make_samples(4, first=50))
    for defect in ("stain", "dent"):
        assert detector.predict(make_sample(61, defect)).score > worst


def test_one_sample_counts_modalities_evenly():
    detector = create().fit(make_samples(1))
    assert detector.predict(make_sample(60, "both")).threshold is None
    channels = torch.tensor([float(bank.rows.shape[1]) for bank in detector._banks.values()])
    torch.testing.assert_close(detector._decision, (channels**-0.5).repeat(2, 1))


@pytest.mark.parametrize("modality", ["rgb", "xyz"])
def test_one_modality_alone(modality):
    detector = create(modalities=modality).fit(make_samples(3))
    other = {"rgb": "xyz", "xyz": "rgb"}[modality]
    assert detector.predict(make_sample(5, modalities=(modality,))).score > 0
    with pytest.raises(DataError, match=f"has no {modality}, which this m3dm model uses; .* modalities={other}"):
        detector.predict(make_sample(5, modalities=(other,)))


def test_patches_of_the_same_place_are_paired():
    place = torch.arange(4.0).view(2, 2)
    rows = {"rgb": place.reshape(-1, 1), "xyz": torch.arange(16.0)[:, None]}
    _, image = M3DM()._pairs(rows, {"rgb": (2, 2), "xyz": (4, 4)})
    assert image.view(4, 4).tolist() == place.repeat_interleave(2, 0).repeat_interleave(2, 1).tolist()


@pytest.fixture(scope="module")
def fused():
    return create(fusion=True, fusion_steps=20).fit(make_samples(4))


def test_fusion_adds_a_bank_and_finds_defects(fused):
    assert list(fused._banks) == ["xyz", "rgb", "fusion"] and fused._decision.shape == (2, 3)
    assert fused._banks["fusion"].rows.shape[1] == fused._banks["xyz"].rows.shape[1] + fused._banks["rgb"].rows.shape[1]
    scores = torch.tensor([fused.predict(s).score for s in [*make_samples(4, first=50), *make_samples(4, first=60, defect="both")]])
    assert float(auroc(scores, torch.tensor([0] * 4 + [1] * 4))) >= 0.9


def test_fusion_repeats_and_survives_save_and_load(fused, tmp_path):
    sample = make_sample(61, "both")
    expected = fused.predict(sample)
    fused.save(tmp_path)
    for detector in (mm3dad.load(tmp_path), create(fusion=True, fusion_steps=20).fit(make_samples(4))):
        found = detector.predict(sample)
        assert found.score == expected.score and torch.equal(found.map, expected.map)
    other = create(fusion=True, fusion_steps=20, seed=1).fit(make_samples(4)).predict(sample)
    assert other.score != expected.score


def test_finer_point_grid():
    detector = create(fineness=2, fusion=True, fusion_steps=5).fit(make_samples(2))
    assert len(detector._banks["xyz"].rows) == int(0.1 * 2 * 16 * 16) and detector.predict(make_sample(5)).score > 0


def test_published_encoders_by_their_names(tmp_path):
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = {f"module.MAE_encoder.{key}": value for key, value in PointTransformer().state_dict().items()}
        image = timm.create_model("test_vit").state_dict()
    torch.save({"base_model": state}, tmp_path / "pretrain.pth")
    torch.save({key: value for key, value in image.items() if not key.startswith("head.")}, tmp_path / "dino.pth")
    detector = create(
        points="point_mae", point_weights=str(tmp_path / "pretrain.pth"), centers=24, group_size=16,
        backbone="test_vit", weights=str(tmp_path / "dino.pth"), layers=(-1,),
    ).fit(make_samples(2))  # fmt: skip
    assert detector._banks["xyz"].rows.shape[1] == 3 * 384
    assert {row["name"] for row in detector.weights} == {"dino.pth", "point_mae"} and all(row["licence"] for row in detector.weights)
    assert detector.predict(make_sample(5)).score > 0


def test_bad_input():
    for name, value in (("fineness", 0), ("fusion_steps", 0), ("share", 0)):
        with pytest.raises(ConfigError, match=name):
            create(**{name: value})
    with pytest.raises(ConfigError, match="fusion needs both modalities, got modalities=rgb; leave modalities out or fusion off"):
        create(fusion=True, modalities="rgb")
    with pytest.raises(ConfigError, match="fusion needs both modalities in the training samples, got one; turn fusion off"):
        create(fusion=True).fit(make_samples(2, modalities=("rgb",)))
