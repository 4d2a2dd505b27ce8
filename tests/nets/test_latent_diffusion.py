from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from mm3dad.errors import WeightsError
from mm3dad.features.weights import TABLE
from mm3dad.nets.latent_diffusion import PUBLISHED, open_diffusion

pytest.importorskip("diffusers")


def write_folder(model, folder):
    """Write a model as Stable Diffusion 1 is laid out."""
    model.unet.save_pretrained(folder / "unet")
    model.vae.save_pretrained(folder / "vae")
    for part in ("text_encoder", "scheduler", "tokenizer"):
        (folder / part).mkdir()
    state = {key: value.contiguous() for key, value in model.text.state_dict().items()}
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(12)[None]}, folder / "text_encoder" / "model.safetensors")
    config = {
        "vocab_size": len(model.text.table), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 12, "hidden_act": "quick_gelu",
    }  # fmt: skip
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**model.schedule, "prediction_type": "epsilon"}))
    known = {f"{word}</w>": number for word, number in model.vocabulary.words.items()}
    known |= {"<|startoftext|>": model.vocabulary.start, "<|endoftext|>": model.vocabulary.end}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(known))


def test_a_folder_in_the_published_layout_is_the_model_that_was_written(tmp_path):
    model = open_diffusion("tiny", seed=3)
    write_folder(model, tmp_path)
    again = open_diffusion(str(tmp_path))
    assert again.size == model.size == 64 and again.vocabulary == model.vocabulary
    told, x = torch.randn(1, 5, 32), torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.text(told), model.text(told))
        assert torch.equal(again.unet(x, 7, told).sample, model.unet(x, 7, told).sample)
        assert torch.equal(again.decode(x), model.decode(x))
    (tmp_path / "tokenizer" / "vocab.json").write_text('{"a</w>": 0}')
    with pytest.raises(WeightsError, match=r"vocab\.json lacks 'with</w>'"):
        open_diffusion(str(tmp_path))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="is no readable Stable Diffusion 1 in safetensors"):
        open_diffusion(str(tmp_path))


def test_the_table_of_weights_names_the_repository_and_its_licence():
    for name, repository in PUBLISHED.items():
        assert TABLE[name].source == f"hub:{repository}" and TABLE[name].licence == "CreativeML OpenRAIL-M"


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'mm3dad\[diffusion\]'"):
        open_diffusion("tiny")
