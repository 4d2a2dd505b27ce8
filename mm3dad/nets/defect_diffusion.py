"""A diffusion model that has learned words for a part and its defects: its losses, and pictures of defects with their masks.

SeaS (ICCV 2025, arXiv 2410.14987): sections 3.2 (losses), 3.3 (mask branch) and the sampling of its code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mm3dad.nets.attention_maps import align_attention, shrink_masks, watch_attention
from mm3dad.nets.defect_words import DefectWords, make_prompt
from mm3dad.nets.latent_diffusion import LatentDiffusion, noise_start
from mm3dad.nets.mask_branch import MaskBranch, tap_outputs

VOTERS = 3  # last steps of sampling whose masks are averaged


class DefectDiffusion:
    """The diffusion model with the two parts that are put on it.

    Args:
        model: whose U-Net is tuned; the rest stays.
        kinds: types of defects.
        seed: of the mask branch's first weights.
    """

    def __init__(self, model: LatentDiffusion, kinds: int, seed: int) -> None:
        self.model = model
        self.words = DefectWords(model.text, model.vocabulary, kinds)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.masks = MaskBranch(*model.tap_channels).eval()

    def to(self, device: torch.device | str) -> DefectDiffusion:
        """Move everything."""
        self.model.to(device)
        self.words.to(device)
        self.masks.to(device)
        return self

    def word_losses(self, pictures: Tensor, masks: Tensor, kinds: list[int], step: Tensor) -> dict[str, Tensor]:
        """Return the three losses of SeaS, each with weight 1; noise comes from torch's generator.

        Args:
            pictures: (B, 3, size, size) in [0, 1], as many with defects as `kinds` names, then normal ones.
            masks: (len(kinds), H, W), 0 or 1.
            kinds: types of the defects.
            step: (B,) int64.
        """
        count = len(kinds)
        prompts = [make_prompt(kind) for kind in kinds]
        with torch.no_grad():
            latents = self.model.encode(pictures)
        noise = torch.randn_like(latents)
        noisy = self.model.add_noise(latents, noise, step)
        told = self.words.encode(self.model.text, [*prompts, *[make_prompt(None)] * (len(pictures) - count)])
        with watch_attention(self.model.unet) as maps:
            found = self.model.unet(noisy[:count], step[:count], told[:count]).sample
        normal = self.model.unet(noisy[count:], step[count:], told[count:]).sample
        return {
            "noise": functional.mse_loss(found, noise[:count]),
            "attention": align_attention(maps, prompts, shrink_masks(masks, latents.shape[-1])),
            "normal": functional.mse_loss(normal, noise[count:]),
        }

    def mask_losses(self, pictures: Tensor, masks: Tensor, kinds: list[int], step: Tensor) -> dict[str, Tensor]:
        """Return the losses of the mask branch alone; arguments as `word_losses`, the normal pictures' masks are empty."""
        count = len(kinds)
        up, down = self.model.taps
        with torch.no_grad(), tap_outputs(up) as levels, tap_outputs(down) as fine:
            latents = self.model.encode(pictures)
            noisy = self.model.add_noise(latents, torch.randn_like(latents), step)
            prompts = [make_prompt(kind) for kind in kinds]
            told = self.words.encode(self.model.text, [*prompts, *[make_prompt(None)] * (len(pictures) - count)])
            noise = self.model.unet(noisy, step, told).sample
            self.model.decode(self.model.step_back(noisy, noise, step)[:count])
        empty = masks.new_zeros((len(pictures) - count, *masks.shape[1:]))
        return self.masks.loss(self.masks.look(levels, latents.shape[-1]), fine, torch.cat([masks, empty]))

    @torch.no_grad()
    def draw(self, normal: Tensor, kind: int, generator: torch.Generator, steps: int, guidance: float) -> tuple[Tensor, Tensor]:
        """Return a picture (3, size, size) in [0, 1] of a defect and the probability of it (size, size).

        Args:
            normal: (3, size, size) in [0, 1], the picture that sampling starts from.
            kind: type of the defect.
            generator: on the CPU, of the start's noise.
            steps: of the DPM solver (multistep).
            guidance: weight of the prompt; 1 takes it as it is.
        """
        from diffusers import DPMSolverMultistepScheduler

        model = self.model
        latent = model.encode(normal[None])
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        x = noise_start(latent, noise, model.schedule)
        solver = DPMSolverMultistepScheduler.from_config(model.schedule)
        solver.set_timesteps(steps)
        told = self.words.encode(model.text, [None, make_prompt(kind)])
        up, down = model.taps
        votes = []
        for number, step in enumerate(solver.timesteps):
            with tap_outputs(up) as levels:
                free, led = model.unet(x.expand(2, -1, -1, -1), step.to(x.device), told).sample.chunk(2)
            x = solver.step(free + guidance * (led - free), step, x).prev_sample
            if number >= len(solver.timesteps) - VOTERS:
                with tap_outputs(down) as fine:
                    picture = model.decode(x)
                coarse = self.masks.look([level[1:] for level in levels], x.shape[-1])
                votes.append(self.masks.judge(self.masks.refine(coarse, fine))[0])
        return picture[0], torch.stack(votes).mean(0)
