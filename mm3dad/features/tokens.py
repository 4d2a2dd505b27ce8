"""Descriptors and patch features of whole images, for methods that retrieve images first and patches second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import DataError
from mm3dad.features.rgb import RGBExtractor, resize_image
from mm3dad.types import Sample


@dataclass(frozen=True)
class Tokens:
    """What an image encoder says of one image.

    Args:
        descriptor: (C,) float32, of the last layer.
        layers: per layer (P, C) float32, row-major cells of one grid.
        grid: (h, w), the same for all images.
    """

    descriptor: Tensor
    layers: list[Tensor]
    grid: tuple[int, int]


class TokenExtractor:
    """A timm backbone on square inputs, aspect not kept, so that cells of two images correspond.

    Transformers give the class token and the patch tokens of each layer through the final norm (RAD; retrieval sheet, 2.1);
    networks without a class token give the mean of the last map, and their maps on the grid of the finest layer.

    Args:
        backbone, layers, weights, device, seed: as `RGBExtractor`.
        image_size: side of the input in pixels, rounded to a multiple of the backbone's patch.
        crop: share of the side that a centre crop keeps, after a resize to image_size / crop.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[int],
        weights: str,
        image_size: int,
        device: str = "cpu",
        seed: int = 0,
        crop: float = 1.0,
    ) -> None:
        self.extractor = RGBExtractor(backbone, layers, weights, device, seed)
        self.image_size = max(1, round(image_size / self.extractor.multiple)) * self.extractor.multiple
        self.crop = crop

    @property
    def weights(self) -> list[dict[str, Any]]:
        """What a result says of the backbone's weights."""
        return [self.extractor.description]

    def describe(self, samples: Sequence[Sample]) -> list[Tokens]:
        """Return the tokens of each sample's image.

        Raises:
            DataError: a sample without an image.
        """
        images = [_square(require_image(sample), self.image_size, self.crop) for sample in samples]
        return [_arrange(*found) for found in self.extractor.extract_tokens(images)]


def require_image(sample: Sample) -> Tensor:
    """Return the sample's image.

    Raises:
        DataError: it has none.
    """
    if sample.rgb is None:
        raise DataError(f"sample {sample.meta.id!r} has no rgb, which this method needs; give the image, or use a method for points")
    return sample.rgb


def _square(rgb: Tensor, size: int, crop: float) -> Tensor:
    full = max(size, round(size / crop))
    start = (full - size) // 2
    return resize_image(rgb, (full, full))[:, start : start + size, start : start + size]


def _arrange(descriptors: list[Tensor], maps: list[Tensor]) -> Tokens:
    grid = max((int(layer.shape[1]), int(layer.shape[2])) for layer in maps)
    resized = [layer if tuple(layer.shape[1:]) == grid else F.interpolate(layer[None], size=grid, mode="bilinear")[0] for layer in maps]
    return Tokens(descriptors[-1].cpu(), [layer.flatten(1).T.contiguous().cpu() for layer in resized], grid)


def smooth_tokens(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average patch features over 1x1, 3x3 and 5x5 cells, zeros beyond the border counted, and take the mean of the three.

    MRAD (arXiv 2602.00522; retrieval sheet, 3.1).

    Args:
        patches: (P, C) floating, row-major cells.
        grid: (h, w).
    """
    cells = patches.T.reshape(1, -1, *grid)
    pooled = [F.avg_pool2d(cells, side, stride=1, padding=side // 2) for side in (1, 3, 5)]
    return torch.stack(pooled).mean(0)[0].flatten(1).T.contiguous()


def join_layers(tokens: Tokens) -> Tensor:
    """Return (P, sum C): the patches of all layers beside each other, each layer of unit length, so that a cosine is the layers' mean."""
    return torch.cat([F.normalize(layer, dim=1) for layer in tokens.layers], dim=1)
