"""A text-conditioned latent diffusion model of diffusers' parts: Stable Diffusion 1 from its folder, or a tiny random one of its form.

"High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022). Without the package transformers: the text encoder is ours,
and prompts are made of single words, which the tokenizer's table is enough for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm3dad import files
from mm3dad.errors import ConfigError, DataError, ModelError, WeightsError
from mm3dad.nets.defect_words import STARTS, Vocabulary
from mm3dad.nets.text_tower import TextTower

TINY = "tiny"
PUBLISHED = {"stable-diffusion-v1-4": "CompVis/stable-diffusion-v1-4"}  # name -> repository on the hub
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass
class LatentDiffusion:
    """The networks and what binds them.

    Args:
        unet: UNet2DConditionModel that predicts noise.
        vae: AutoencoderKL.
        text: the text encoder.
        vocabulary: words that prompts are made of.
        schedule: configuration of the noise, as diffusers' schedulers take it.
        size: side of its pictures in pixels.
        source: where the weights come from.
    """

    unet: Any
    vae: Any
    text: TextTower
    vocabulary: Vocabulary
    schedule: dict[str, Any]
    size: int
    source: str

    def __post_init__(self) -> None:
        self.vae.eval().requires_grad_(False)
        self.text.eval().requires_grad_(False)
        self.signal = signal_levels(self.schedule, int(self.schedule["num_train_timesteps"]))

    @property
    def taps(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The levels that masks are read off: two of the U-Net's way up, three of the decoder's."""
        return list(self.unet.up_blocks[1:3]), list(self.vae.decoder.up_blocks[:3])

    @property
    def tap_channels(self) -> tuple[tuple[int, int], tuple[int, ...]]:
        """Channels of the `taps`."""
        up, down = self.unet.config.block_out_channels[::-1], self.vae.config.block_out_channels[::-1]
        return (up[1], up[2]), tuple(down[:3])

    def to(self, device: torch.device | str) -> LatentDiffusion:
        """Move everything."""
        for module in (self.unet, self.vae, self.text):
            module.to(device)
        self.signal = self.signal.to(device)
        return self

    def encode(self, pictures: Tensor) -> Tensor:
        """Return the latents (B, C, h, w), the mode and not a draw, of pictures (B, 3, size, size) in [0, 1]."""
        latents: Tensor = self.vae.encode(2 * pictures - 1).latent_dist.mode()
        return latents * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures (B, 3, size, size) in [0, 1] of latents (B, C, h, w)."""
        pictures: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (pictures / 2 + 0.5).clamp(0, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Return sqrt(abar_t) z + sqrt(1 - abar_t) e at steps (B,) int64."""
        kept = self.signal[step].view(-1, 1, 1, 1)
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise

    def step_back(self, noisy: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Return the mean of DDPM's x_(t-1), given the predicted noise (Ho et al. 2020, equation 7); x_0 at the first step."""
        now = self.signal[step].view(-1, 1, 1, 1)
        before = torch.where(step > 0, self.signal[(step - 1).clamp_min(0)], torch.ones_like(self.signal[step])).view(-1, 1, 1, 1)
        clean = (noisy - (1 - now).sqrt() * noise) / now.sqrt()
        alpha = now / before
        return (before.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - before) * noisy) / (1 - now)


def signal_levels(schedule: dict[str, Any], steps: int) -> Tensor:
    """Return abar (steps,) float32 of a schedule spread over a number of steps; both its ends stay.

    Raises:
        ModelError: another form of schedule than scaled_linear and linear.
    """
    low, high, form = float(schedule["beta_start"]), float(schedule["beta_end"]), schedule["beta_schedule"]
    if form == "scaled_linear":
        betas = torch.linspace(low**0.5, high**0.5, steps) ** 2
    elif form == "linear":
        betas = torch.linspace(low, high, steps)
    else:
        raise ModelError(f"the noise schedule must be scaled_linear or linear, got {form!r}; give a folder of Stable Diffusion 1")
    return torch.cumprod(1 - betas, 0)


def open_diffusion(weights: str, seed: int = 0) -> LatentDiffusion:
    """Open a model: "tiny" (random weights), a name of `PUBLISHED`, or a folder in diffusers' layout.

    Args:
        weights: which.
        seed: of tiny's weights.

    Raises:
        ConfigError: diffusers is not installed.
        WeightsError: a folder or a part of it is missing, damaged or of another kind; no network.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError("latent diffusion needs the package diffusers; pip install 'mm3dad[diffusion]'") from error
    if weights == TINY:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _make_tiny(diffusers, seed)
    return _open_folder(diffusers, _fetch(weights) if weights in PUBLISHED else Path(weights), weights)


def _make_tiny(diffusers: Any, seed: int) -> LatentDiffusion:
    names = ("a", "with", *STARTS.values())
    vocabulary = Vocabulary(len(names), len(names) + 1, {name: number for number, name in enumerate(names)})
    text = TextTower(len(names) + 2, width=32, layers=2, heads=4, hidden=64, length=12)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        latent_channels=4,
    )
    schedule = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return LatentDiffusion(unet, vae, text, vocabulary, schedule, 64, f"random, seed {seed}")


def _fetch(name: str) -> Path:
    """Download the parts of a published model that are needed, safetensors only, or find them in the hub's cache."""
    from huggingface_hub import snapshot_download

    wanted = [f"{part}/{end}" for part in PARTS for end in ("*.json", "model.safetensors", "diffusion_pytorch_model.safetensors")]
    try:
        return Path(snapshot_download(PUBLISHED[name], allow_patterns=wanted))
    except Exception as error:  # the hub fails in many types: no network, a gated repository
        raise WeightsError(
            f"cannot get {name} from the hub ({type(error).__name__}); give a folder in diffusers' layout with weights=PATH, "
            "or ask for weights=tiny, a small model with random weights"
        ) from error


def _open_folder(diffusers: Any, folder: Path, source: str) -> LatentDiffusion:
    lacking = [part for part in PARTS if not (folder / part).is_dir()]
    if lacking:
        raise WeightsError(
            f"expected a diffusers folder with {', '.join(PARTS)} at {folder}, found no {lacking[0]}; "
            f"give one, or ask for {', '.join(PUBLISHED)} or {TINY}"
        )
    try:
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True, local_files_only=True)
        vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae", use_safetensors=True, local_files_only=True)
        text = _open_tower(folder / "text_encoder")
        schedule = files.read_json(folder / "scheduler" / "scheduler_config.json")
        vocabulary = Vocabulary.pick(files.read_json(folder / "tokenizer" / "vocab.json"))
        size = int(unet.config.sample_size) * 2 ** (len(vae.config.block_out_channels) - 1)
        fits = unet.config.cross_attention_dim == text.table.shape[1] and len(unet.config.block_out_channels) >= 3
        if not fits or unet.config.in_channels != vae.config.latent_channels or schedule.get("prediction_type", "epsilon") != "epsilon":
            raise ModelError("its parts do not fit each other, or it does not predict noise")
        return LatentDiffusion(unet, vae, text, vocabulary, schedule, size, source)
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, DataError, ModelError) as error:
        said = str(error).partition("\n")[0][:200]
        raise WeightsError(f"{folder} is no readable Stable Diffusion 1 in safetensors ({said}); download it again") from error


def _open_tower(folder: Path) -> TextTower:
    """Build the text encoder of a folder and fill it from its published names."""
    config = files.read_json(folder / "config.json")
    config = config.get("text_config", config)
    tower = TextTower(
        int(config["vocab_size"]), int(config["hidden_size"]), int(config["num_hidden_layers"]), int(config["num_attention_heads"]),
        int(config["intermediate_size"]), int(config["max_position_embeddings"]), str(config["hidden_act"]),
    )  # fmt: skip
    state = files.read_tensors(folder / "model.safetensors")
    given = {key: value.float() for key, value in state.items() if not key.endswith("position_ids")}
    if missing := sorted(tower.state_dict().keys() - given.keys()):
        raise WeightsError(f"{folder} lacks {missing[0]!r} ({len(missing)} tensors); give CLIP's text encoder as Stable Diffusion 1 has it")
    tower.load_state_dict({key: given[key] for key in tower.state_dict()})
    return tower


def noise_start(latent: Tensor, noise: Tensor, schedule: dict[str, Any], steps: int = 1500) -> Tensor:
    """Return a start for sampling: the latent of a normal picture under the noise of a schedule stretched to more steps than trained.

    At 1500 steps sqrt(abar) is 0.018, at 1000 it is 0.068 (trained sheet, 3.4): what is left of the normal picture hardly shows.
    """
    kept = signal_levels(schedule, steps)[-1].to(latent)
    return kept.sqrt() * latent + (1 - kept).sqrt() * noise
