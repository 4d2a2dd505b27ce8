from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, ModelError, StorageError, WeightsError
from mm3dad.nets import _checkpoint
from mm3dad.nets.latent_diffusion import noise_start, open_diffusion, signal_levels
from mm3dad.nets.task import TrainingRun
from mm3dad.synthesis import seas as module
from mm3dad.synthesis.seas import Seas, SeasConfig
from tests.methods.parts import make_sample

pytest.importorskip("diffusers")
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
QUICK = SeasConfig(weights="tiny", steps=2, mask_steps=2, batch=1, sampling=3, rate=1e-3, word_rate=1e-3, threshold=0.01)


def make_defect(number, kind="hole"):
    sample = make_sample(number)
    mask = torch.zeros(sample.size, dtype=torch.bool)
    mask[10:20, 8 + number : 20 + number] = True
    return replace(sample, rgb=sample.rgb * ~mask, mask=mask, label=1, meta=replace(sample.meta, defect=kind))


DEFECTS = [make_defect(0), make_defect(1, "cut")]
NORMALS = [make_sample(10)]


def state(made):
    net = made._net
    return [*net.model.unet.state_dict().values(), *net.words.state_dict().values(), *net.masks.state_dict().values()]


@pytest.fixture(scope="module")
def fitted():
    made = Seas(QUICK)
    made.fit(DEFECTS, NORMALS)
    return made


def test_the_start_keeps_less_of_the_normal_picture_than_training_ever_saw():
    for steps, kept in ((1500, 0.018), (1000, 0.068)):
        assert float(signal_levels(SCHEDULE, steps)[-1].sqrt()) == pytest.approx(kept, abs=5e-4)
    latent, noise = torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    assert float(noise_start(latent, noise, SCHEDULE).mean()) == pytest.approx(0.018, abs=5e-4)
    with pytest.raises(ModelError, match="must be scaled_linear or linear, got 'cosine'"):
        signal_levels({**SCHEDULE, "beta_schedule": "cosine"}, 10)


def test_one_step_back_is_ddpms_mean():
    model = open_diffusion("tiny")
    clean, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    step = torch.tensor([0, 700])
    found = model.step_back(model.add_noise(clean, noise, step), noise, step)
    assert torch.allclose(found[0], clean[0], atol=1e-4)
    now, before = model.signal[700].double(), model.signal[699].double()
    noisy = now.sqrt() * clean[1] + (1 - now).sqrt() * noise[1]
    alpha = now / before
    written = (noisy - (1 - alpha) / (1 - now).sqrt() * noise[1]) / alpha.sqrt()
    assert torch.allclose(found[1], written.float(), atol=1e-3)


def test_the_normal_loss_is_the_noise_of_normal_pictures_alone(fitted):
    net = fitted._net
    pictures, masks, step = torch.rand(2, 3, 64, 64), torch.ones(1, 64, 64), torch.tensor([400, 400])
    losses = []
    for other in (pictures[:1], 1 - pictures[:1]):
        torch.manual_seed(0)
        losses.append(net.word_losses(torch.cat([other, pictures[1:]]), masks, [0], step))
    assert torch.allclose(losses[0]["normal"], losses[1]["normal"], atol=1e-6) and not torch.equal(losses[0]["noise"], losses[1]["noise"])
    assert set(losses[0]) == {"noise", "attention", "normal"}


def test_a_seed_repeats_and_a_saved_model_makes_the_same(fitted, tmp_path):
    fitted.save(tmp_path, {"of": "test"})
    again = Seas.load(tmp_path)
    one, other, third = (who.make(NORMALS[0], torch.Generator().manual_seed(s)) for who, s in ((fitted, 1), (again, 1), (fitted, 2)))
    assert torch.equal(one.rgb, other.rgb) and torch.equal(one.mask, other.mask) and not torch.equal(one.rgb, third.rgb)
    assert one.modalities == ("rgb",) and one.label == 1 and one.size == NORMALS[0].size and bool(one.mask.any())
    assert Seas.identify(tmp_path) == {"of": "test"} and again.describe()["note"].startswith("random weights")
    (tmp_path / "seas.json").write_text('{"synthesizer": "other"}')
    with pytest.raises(ModelError, match="no model of seas"):
        Seas.load(tmp_path)


def test_the_mask_is_the_mean_of_the_last_three_votes_above_the_threshold(fitted, monkeypatch):
    votes = iter([0.3, 0.3, 0.03])
    asked = []

    def judge(features):
        asked.append(1)
        return torch.full((1, *features.shape[-2:]), next(votes))

    monkeypatch.setattr(fitted._net.masks, "judge", judge)
    _, chance = fitted._net.draw(torch.rand(3, 64, 64), 0, torch.Generator().manual_seed(0), 4, 5.0)
    assert len(asked) == 3 and torch.allclose(chance, torch.tensor(0.21))


def test_no_mask_in_any_picture_is_an_error(fitted, monkeypatch):
    monkeypatch.setattr(fitted._net.masks, "judge", lambda features: torch.zeros(1, *features.shape[-2:]))
    with pytest.raises(DataError, match=r"finds no defect of type '\w+' in 5 pictures; train longer or lower threshold"):
        fitted.make(NORMALS[0], torch.Generator().manual_seed(0))


def test_a_training_cut_off_ends_as_one_that_was_not(fitted, tmp_path, monkeypatch):
    write, calls = _checkpoint.write_checkpoint, []
    monkeypatch.setattr(module, "EPOCH", 2)
    whole = Seas(QUICK)
    whole.fit(DEFECTS, NORMALS)

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise StorageError("cannot write: no space left")
        write(*arguments)

    monkeypatch.setattr(_checkpoint, "write_checkpoint", stop)
    with pytest.raises(StorageError):
        Seas(QUICK).fit(DEFECTS, NORMALS, TrainingRun(tmp_path))
    monkeypatch.setattr(_checkpoint, "write_checkpoint", write)
    resumed = Seas(QUICK)
    resumed.fit(DEFECTS, NORMALS, TrainingRun(tmp_path))
    assert all(torch.equal(one, other) for one, other in zip(state(whole), state(resumed), strict=True))


def test_bad_input(tmp_path):
    for defects, normals in (([], NORMALS), (DEFECTS, [])):
        with pytest.raises(DataError, match=r"labelled defects and normal samples .* take dual or cutpaste"):
            Seas(QUICK).fit(defects, normals)
    with pytest.raises(DataError, match="has no mask or an empty one"):
        Seas(QUICK).fit([replace(DEFECTS[0], mask=None)], NORMALS)
    with pytest.raises(DataError, match="needs rgb, which sample"):
        Seas(QUICK).fit(DEFECTS, [replace(NORMALS[0], rgb=None)])
    with pytest.raises(DataError, match="learned none yet"):
        Seas(QUICK).make(NORMALS[0], torch.Generator())
    with pytest.raises(WeightsError, match=f"expected a diffusers folder .* at {tmp_path}, found no unet"):
        open_diffusion(str(tmp_path))
    for wrong in ({"steps": 0}, {"sampling": 2}, {"threshold": 1.0}, {"rate": 0.0}):
        with pytest.raises(ConfigError, match="seas needs"):
            SeasConfig(**wrong)
