from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm3dad.errors import ConfigError, ModelError, WeightsError
from mm3dad.features.weights import TABLE
from mm3dad.nets import latent_diffusion as module
from mm3dad.nets.latent_diffusion import PUBLISHED, noise_start, open_diffusion, signal_levels
from tests.nets.tiny_diffusion import write_folder

diffusers = pytest.importorskip("diffusers")
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def model():
    return open_diffusion("tiny")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    return folder, write_folder(folder)


def test_noise_of_the_start():
    assert float(signal_levels(SCHEDULE, 1000)[-1].sqrt()) == pytest.approx(0.068, abs=5e-4)
    assert float(signal_levels(SCHEDULE, 1500)[-1].sqrt()) == pytest.approx(0.018, abs=5e-4)
    latent, noise = torch.full((1, 4, 8, 8), 2.0), torch.zeros(1, 4, 8, 8)
    assert float(noise_start(latent, noise, SCHEDULE).mean()) == pytest.approx(2 * 0.018, abs=1e-3)
    assert float(noise_start(noise, noise + 1, SCHEDULE).mean()) == pytest.approx((1 - 0.018**2) ** 0.5, abs=1e-3)
    assert float(signal_levels(SCHEDULE | {"beta_schedule": "linear"}, 10)[0]) == pytest.approx(1 - 0.00085)
    with pytest.raises(ModelError, match="scaled_linear or linear, got 'squaredcos_cap_v2'"):
        signal_levels(SCHEDULE | {"beta_schedule": "squaredcos_cap_v2"}, 10)


def test_steps_equal_those_of_diffusers(model):
    scheduler = diffusers.DDPMScheduler(**SCHEDULE, clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    latents, noise, guess = (torch.randn(3, 4, 4, 4, generator=generator) for _ in range(3))
    step = torch.tensor([0, 1, 700])
    noisy = model.add_noise(latents, noise, step)
    assert torch.allclose(noisy, scheduler.add_noise(latents, noise, step), atol=1e-5)
    back = model.step_back(noisy, guess, step)
    scheduler.set_timesteps(1000)
    for number, now in enumerate(step.tolist()):
        drawn = torch.Generator().manual_seed(5)
        found = scheduler.step(guess[number, None], now, noisy[number, None], generator=drawn).prev_sample
        if now:
            level = model.signal[[now, now - 1]].double()
            spread = ((1 - level[1]) / (1 - level[0]) * (1 - level[0] / level[1])).sqrt()
            found = found - spread.float() * torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5))
        assert torch.allclose(back[number], found[0], atol=1e-3 if now < 2 else 1e-5)


def test_the_tiny_model_repeats_by_its_seed(model):
    for other, same in ((open_diffusion("tiny"), True), (open_diffusion("tiny", 1), False)):
        assert torch.equal(model.unet.conv_in.weight, other.unet.conv_in.weight) == same
    assert model.source == "random, seed 0" and model.size == 64
    latents = model.encode(torch.rand(2, 3, 64, 64))
    assert latents.shape == (2, 4, 16, 16) and model.decode(latents).shape == (2, 3, 64, 64)
    state = torch.get_rng_state()
    open_diffusion("tiny", 2)
    assert torch.equal(state, torch.get_rng_state())


def test_a_folder_gives_the_same_model(written):
    folder, model = written
    found = open_diffusion(str(folder))
    assert found.size == 64 and found.vocabulary == model.vocabulary and found.source == str(folder)
    for name in ("unet", "vae", "text"):
        one, other = getattr(model, name).state_dict(), getattr(found, name).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    solver = diffusers.DPMSolverMultistepScheduler.from_config(found.schedule)
    assert solver.config.beta_schedule == "scaled_linear" and solver.config.prediction_type == "epsilon"


def test_a_folder_of_something_else_is_refused(written, tmp_path):
    import shutil

    with pytest.raises(WeightsError, match="found no unet"):
        open_diffusion(str(tmp_path / "none"))

    def spoil(name, change):
        folder = tmp_path / name
        shutil.copytree(written[0], folder)
        change(folder)
        return str(folder)

    def drop_tensor(folder):
        path = folder / "text_encoder" / "model.safetensors"
        state = load_file(path)
        save_file({key: value.clone() for key, value in state.items() if "final_layer_norm" not in key}, path)

    def predict_velocity(folder):
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))

    cases = {
        "tensors": (drop_tensor, "lacks 'text_model.final_layer_norm.bias'"),
        "velocity": (predict_velocity, "does not predict noise"),
        "words": (lambda folder: (folder / "tokenizer" / "vocab.json").write_text("{}"), "vocab.json lacks"),
        "cut": (lambda folder: next((folder / "unet").glob("*.safetensors")).write_bytes(b"no"), "no readable Stable Diffusion 1"),
        "text": (lambda folder: (folder / "text_encoder" / "config.json").write_text("{"), "no readable Stable Diffusion 1"),
    }
    for name, (change, said) in cases.items():
        with pytest.raises(WeightsError, match=said):
            open_diffusion(spoil(name, change))


def test_without_a_network_and_without_the_extra(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(WeightsError, match="cannot get stable-diffusion-v1-4 from the hub"):
        open_diffusion("stable-diffusion-v1-4")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"pip install 'mm3dad\[diffusion\]'"):
        open_diffusion(module.TINY)


def test_the_table_of_weights_names_the_same_repository():
    for name, repository in PUBLISHED.items():
        assert TABLE[name].source == f"hub:{repository}"
