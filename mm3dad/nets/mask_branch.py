"""The branch that reads a defect's mask off a diffusion model: coarse from the U-Net, refined by the decoder of its pictures.

Refined mask prediction, SeaS (ICCV 2025, arXiv 2410.14987), section 3.3. Sizes follow from the networks it is put on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm3dad.errors import ConfigError
from mm3dad.nets.losses import focal_loss

HEADS, LAYERS = 8, 4  # of the transformer
FIRST, SECOND = 128, 64  # channels kept of the two levels of the U-Net, where they have as many
TAPS = 3  # levels of the decoder that refine


class MaskBranch(nn.Module):
    """Coarse features, their refinement, and the head they share.

    Args:
        coarse: channels of the two levels of the U-Net.
        fine: channels of each level of the decoder, coarsest first.

    Raises:
        ConfigError: diffusers is not installed.
    """

    def __init__(self, coarse: tuple[int, int], fine: Sequence[int]) -> None:
        super().__init__()
        try:
            from diffusers import Transformer2DModel
        except ImportError as error:
            raise ConfigError("the mask branch needs the package diffusers; pip install 'mm3dad[diffusion]'") from error
        kept = min(FIRST, coarse[0]), min(SECOND, coarse[1])
        width = sum(kept)
        self.take = nn.ModuleList(nn.Conv2d(one, other, 1, bias=False) for one, other in zip(coarse, kept, strict=True))
        groups = max(count for count in (32, 16, 8, 4, 2, 1) if width % count == 0)
        self.mix = Transformer2DModel(HEADS, width // HEADS, width, num_layers=LAYERS, norm_num_groups=groups)
        self.refiners = nn.ModuleList(_Refiner(width, one) for one in fine)
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 3, padding=1))

    def look(self, levels: Sequence[Tensor], side: int) -> Tensor:
        """Return coarse features (B, C, side, side) of two levels of the U-Net (B, C', h, w)."""
        taken = [take(one) for take, one in zip(self.take, levels, strict=True)]
        joined = torch.cat([functional.interpolate(one, size=(side, side), mode="bilinear") for one in taken], 1)
        found: Tensor = self.mix(joined, return_dict=False)[0]
        return found

    def refine(self, features: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """Return features (B, C, H, W) at the size of the last of the decoder's levels (B, C', h, w)."""
        for refiner, level in zip(self.refiners, levels, strict=True):
            features = refiner(features, level)
        return features

    def judge(self, features: Tensor) -> Tensor:
        """Return the probability of a defect, (B, H, W)."""
        found: Tensor = self.head(features).softmax(1)[:, 1]
        return found

    def loss(self, coarse: Tensor, levels: Sequence[Tensor], masks: Tensor) -> dict[str, Tensor]:
        """Return the focal losses of both maps against masks (B, H, W).

        Args:
            coarse: of `look`, all samples; those with defects first.
            levels: of the decoder, of the samples with defects only: a normal picture has nothing to refine, its coarse map is enlarged.
            masks: 0 or 1, at the size of the last level or another.
        """
        count = len(levels[0])
        rough = self.judge(coarse)
        target = functional.adaptive_max_pool2d(masks[:, None].float(), rough.shape[1:])[:, 0]
        size = levels[-1].shape[-2:]
        fine = [self.judge(self.refine(coarse[:count], levels))]
        if count < len(coarse):
            fine.append(functional.interpolate(rough[count:, None], size=size, mode="bilinear")[:, 0])
        full = functional.interpolate(masks[:, None].float(), size=size, mode="nearest")[:, 0]
        return {"fine": focal_loss(torch.cat(fine), full), "coarse": focal_loss(rough, target)}


class _Refiner(nn.Module):
    """Enlarge, and let a gate made of the coarse features weigh the fine ones."""

    def __init__(self, width: int, fine: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(width, width, 1)
        self.near = nn.Sequential(*(_convolve(width, size) for size in (1, 3, 1)))
        self.far = nn.Sequential(*(_convolve(width, size) for size in (1, 3, 1)))
        self.take = nn.Conv2d(fine, width, 1)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        large = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear")
        near = self.near(large)
        gate = self.skip(large) + near + self.far(near)
        found: Tensor = self.take(fine) * gate + large
        return found


def _convolve(width: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, size, padding=size // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())


@contextmanager
def tap_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Keep what modules put out while the block runs: a list with one tensor each, of the latest pass."""
    found: list[Any] = [None] * len(modules)

    def keep(place: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found[place] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(place)) for place, module in enumerate(modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
