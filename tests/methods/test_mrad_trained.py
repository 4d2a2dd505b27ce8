"""mrad's learned forms under the rules of the contract: projections (ft), and prompts of CLIP's text tower (clip)."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, WeightsError
from mm3dad.metrics import auroc
from mm3dad.nets.training import TrainingRun
from tests.methods.parts import make_sample, make_samples

CLIP = {
    "backbone": "clip_vitl14_336",
    "weights": "random",
    "image_size": 70,
    "variant": "clip",
    "epochs": 1,
    "prompt_epochs": 2,
    "batch": 4,
}


@pytest.fixture(autouse=True)
def small_clip(monkeypatch):
    """CLIP's layout in small, both towers."""

    def create(name, pretrained=None):
        image = open_clip.CLIPVisionCfg(layers=3, width=32, head_width=8, patch_size=14, image_size=28)
        return open_clip.CLIP(12, image, open_clip.CLIPTextCfg(width=16, heads=2, layers=3))

    monkeypatch.setattr(open_clip, "create_model", create)


def auxiliary(count=6):
    pairs = zip(make_samples(count, category="disc"), make_samples(count, first=20, category="disc", defect="both"), strict=True)
    return [sample for pair in pairs for sample in pair]


def create(variant, **options):
    if variant == "clip":
        return mm3dad.create("mrad", **CLIP | options)
    return mm3dad.create("mrad", **{"variant": "ft", "image_size": 64, "batch": 4, "epochs": 10} | options)


@pytest.fixture
def tests():
    return [*make_samples(4, first=50), *make_samples(4, first=60, defect="both")]


def test_projections_find_the_defects_of_another_product(tests):
    predictions = create("ft").fit(auxiliary()).predict_all(tests)
    labels = torch.tensor([sample.label for sample in tests])
    assert auroc(torch.tensor([one.score for one in predictions]), labels) >= 0.9
    masks = torch.stack([sample.mask for sample in tests]).flatten().long()
    assert auroc(torch.stack([one.map for one in predictions]).flatten(), masks) >= 0.8


@pytest.mark.parametrize("variant", ["ft", "clip"])
def test_repeats_and_survives_save_and_load(variant, tests, tmp_path):
    one, other = (create(variant, epochs=2).fit(auxiliary(3)) for _ in range(2))
    one.save(tmp_path / "model")
    loaded = mm3dad.load(tmp_path / "model")
    assert loaded.bank_bytes == one.bank_bytes > mm3dad.create("mrad", image_size=64).fit(auxiliary(3)).bank_bytes
    for first, second, third in zip(*(detector.predict_all(tests) for detector in (one, other, loaded)), strict=True):
        assert first.score == second.score == third.score and 0 <= first.score <= 1
        assert torch.equal(first.map, second.map) and torch.equal(first.map, third.map)
        assert first.map.shape == (64, 64) and float(first.map.min()) >= 0 and float(first.map.max()) <= 1 + 1e-6
    assert one.predict(tests[-1]).score == one.predict_all(tests)[-1].score


@pytest.mark.parametrize("variant", ["ft", "clip"])
def test_losses_fall_and_a_cut_off_training_goes_on_to_the_same_result(variant, tests, tmp_path):
    class CutError(Exception):
        pass

    def cut(stage, done, total):
        if stage.startswith(f"training {'prompts' if variant == 'clip' else 'projections'}") and done > total // 2:
            raise CutError

    options = {"rate": 5e-3, "epochs": 4, "prompt_epochs": 4}
    whole = create(variant, **options)
    whole.fit(auxiliary(3))
    for history in whole.training.histories.values():
        assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert set(whole.training.histories) == ({"projections", "prompts"} if variant == "clip" else {"projections"})
    resumed = create(variant, **options)
    resumed.training = TrainingRun(tmp_path)
    with pytest.raises(CutError):
        resumed.fit(auxiliary(3), progress=cut)
    assert resumed.fit(auxiliary(3)).predict(tests[-1]).score == whole.predict(tests[-1]).score


def test_what_learns_is_what_the_variant_says():
    fitted = create("clip").fit(auxiliary(2))
    tensors, _ = fitted._state()
    assert {key.split(".")[0] for key in tensors if "." in key} == {"head", "prompts"}
    untrained = create("clip")
    untrained._memory = fitted._memory
    untrained._make_nets()
    for before, after in ((untrained._head, fitted._head), (untrained._prompted.prompts, fitted._prompted.prompts)):
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
            # A key's bias adds the same to all rows, which a softmax does not see; of these random features none lies in the
            # anomalous region, whose token is then zero.
            assert name.endswith("key.bias") or name == "bias.1.weight" or not torch.equal(a, b), name
    assert not any(parameter.requires_grad for parameter in fitted._clip.text.parameters())


def test_regions_follow_the_memory_and_empty_ones_are_sound():
    fitted = create("clip").fit(auxiliary(2))
    _, patches, _ = fitted._describe(make_sample(60, "both"))
    half = torch.arange(len(patches)) / len(patches)
    with torch.no_grad():
        found = [fitted._prompted.judge([patches], [probability])[0] for probability in (half, 0 * half, 0 * half + 1)]
    for one in found:
        torch.testing.assert_close(one.sum(1), torch.ones(len(patches)))
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])


def test_the_published_rate_falls_along_a_cosine_in_ft_and_stands_in_clip(monkeypatch):
    from mm3dad.methods import _labelled

    tasks = []
    inner = _labelled.train
    monkeypatch.setattr(_labelled, "train", lambda task, *rest: tasks.append(task) or inner(task, *rest))
    create("ft", epochs=2, rate=4e-4).fit(auxiliary(2))
    create("clip", prompt_epochs=1).fit(auxiliary(2))
    fine, *stages = tasks
    assert [task.name for task in tasks] == ["projections", "projections", "prompts"] and all(task.rate is None for task in stages)
    assert fine.rate(0) == 1 and fine.rate(2) * 4e-4 == pytest.approx(1e-6) and math.isclose(fine.rate(1), (1 + 1e-6 / 4e-4) / 2)


def test_bad_input_is_explained(tmp_path):
    with pytest.raises(ConfigError, match="variant=clip needs a CLIP backbone, .* got efficientnet_lite0; take clip_vitl14_336"):
        mm3dad.create("mrad", variant="clip")
    with pytest.raises(DataError, match="no defective sample"):
        create("ft").fit(make_samples(2))
    detector = create("clip")
    torch.save({f"visual.{key}": value for key, value in detector._clip._visual.state_dict().items()}, tmp_path / "image.pth")
    with pytest.raises(WeightsError, match="image tower alone"):
        create("clip", weights=str(tmp_path / "image.pth")).fit(auxiliary(2))
    torch.save(detector._clip._model.state_dict(), tmp_path / "both.pth")
    assert create("clip", weights=str(tmp_path / "both.pth")).fit(auxiliary(2)).predict(make_sample(1)).score >= 0
