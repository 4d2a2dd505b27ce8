"""Square pictures of a product, those with labelled defects first, and the batches that seas learns from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mm3dad.types import Sample


class LabelledPictures:
    """Pictures and masks at the size of a diffusion model.

    Args:
        defects: with masks.
        normals: without.
        kinds: type of each defect.
        size: side in pixels.
    """

    def __init__(self, defects: Sequence[Sample], normals: Sequence[Sample], kinds: list[int], size: int) -> None:
        self.pictures = torch.stack([square_picture(sample, size) for sample in (*defects, *normals)])
        self.masks = torch.stack([_square_mask(sample, size) for sample in defects])
        self.kinds = kinds

    def draw(self, generator: torch.Generator, batch: int, turn: bool, noise_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw numbers of `batch` pictures with defects and as many normal ones, how each is turned, and steps of noise."""
        count = len(self.kinds)
        defect = torch.randint(count, (batch,), generator=generator)
        normal = torch.randint(count, len(self.pictures), (batch,), generator=generator)
        turns = torch.randint(8 if turn else 1, (2 * batch,), generator=generator)
        return torch.cat([defect, normal]), turns, torch.randint(noise_steps, (2 * batch,), generator=generator)

    def take(self, numbers: Tensor, turns: Tensor, device: str) -> tuple[Tensor, Tensor, list[int]]:
        """Return pictures (2B, 3, size, size), the masks (B, size, size) of those with defects, and their types."""
        chosen, turned = numbers.tolist(), turns.tolist()
        batch = len(chosen) // 2
        pictures = torch.stack([_turn(self.pictures[one], how) for one, how in zip(chosen, turned, strict=True)])
        masks = torch.stack([_turn(self.masks[one], how) for one, how in zip(chosen[:batch], turned[:batch], strict=True)])
        return pictures.to(device), masks.to(device), [self.kinds[one] for one in chosen[:batch]]


def square_picture(sample: Sample, size: int) -> Tensor:
    """Bring an image to (3, size, size)."""
    assert sample.rgb is not None
    return functional.interpolate(sample.rgb[None], size=(size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)


def _square_mask(sample: Sample, size: int) -> Tensor:
    """Bring a mask to (size, size), 0 or 1; each pixel says whether any of its own is marked, so that none is lost."""
    assert sample.mask is not None
    return functional.adaptive_max_pool2d(sample.mask[None].float(), size)[0]


def _turn(picture: Tensor, number: int) -> Tensor:
    """Return one of the eight turned and mirrored forms of (..., S, S)."""
    turned = picture.rot90(number % 4, (-2, -1))
    return turned.flip(-1) if number >= 4 else turned
