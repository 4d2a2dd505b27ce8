"""A folder in Stable Diffusion 1's layout with small random parts, as diffusers and transformers write it."""

from __future__ import annotations

import json

from safetensors.torch import save_file

from mm3dad.nets.latent_diffusion import open_diffusion


def write_folder(folder, seed=3):
    """Write the parts of `tiny`; return the model they are of."""
    model = open_diffusion("tiny", seed)
    model.unet.save_pretrained(folder / "unet")
    model.vae.save_pretrained(folder / "vae")
    for part in ("text_encoder", "tokenizer", "scheduler"):
        (folder / part).mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.text.state_dict().items()}, folder / "text_encoder" / "model.safetensors")
    config = {"vocab_size": 6, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config |= {"max_position_embeddings": 12, "hidden_act": "quick_gelu", "model_type": "clip_text_model"}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    numbers = {"a</w>": 0, "with</w>": 1, "object</w>": 2, "defect</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(numbers))
    schedule = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0", "beta_start": 0.00085, "beta_end": 0.012}
    schedule |= {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True}
    schedule |= {"steps_offset": 1, "trained_betas": None, "clip_sample": False}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    return model
