"""Maps between the features of two modalities: image and point patches of one place predict each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mm3dad.nets.fusion_head import contrast


def make_mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers of these widths with an exact GELU between each two; no norm, no dropout."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class CrossMapping(nn.Module):
    """Two MLPs, one from image to point features and one back.

    Source: CFM, "Multimodal Industrial Anomaly Detection by Crossmodal Feature Mapping" (CVPR 2024); multimodal sheet, 6.

    Args:
        rgb_channels, xyz_channels: widths of the features.
        layers: linear layers of each MLP; 3 is published, 7 in the published code's large variant.
        guide: channels of a guiding feature that both MLPs see beside their input (Mentor3AD); 0 has none.
        hidden: least width of the hidden layers, which else is the mean of input and output, as published.
    """

    def __init__(self, rgb_channels: int, xyz_channels: int, layers: int = 3, guide: int = 0, hidden: int = 0) -> None:
        super().__init__()
        between = [max(hidden, (rgb_channels + xyz_channels + guide) // 2)] * (layers - 1)
        self.to_xyz = make_mlp([rgb_channels + guide, *between, xyz_channels])
        self.to_rgb = make_mlp([xyz_channels + guide, *between, rgb_channels])

    def forward(self, rgb: Tensor, xyz: Tensor, guide: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict each modality from the other.

        Args:
            rgb: (P, C) patches.
            xyz: (P, C') patches of the same places.
            guide: (P, C'') guiding features of the same places.

        Returns:
            Predicted image features (P, C) and point features (P, C').
        """
        extra = [] if guide is None else [guide]
        return self.to_rgb(torch.cat([xyz, *extra], dim=1)), self.to_xyz(torch.cat([rgb, *extra], dim=1))


def code_places(grid: tuple[int, int], bands: int) -> Tensor:
    """Return sine and cosine of row and column in octaves, (h * w, 4 bands) float32, row-major; the lowest is half a period wide.

    Args:
        grid: (h, w).
        bands: octaves; 0 gives a code without a channel.
    """
    rows, columns = (torch.linspace(-1, 1, side) if side > 1 else torch.zeros(1) for side in grid)
    place = torch.cartesian_prod(rows, columns).view(-1, 2)
    angles = [place * (math.pi * 2**band / 2) for band in range(bands)]
    return torch.cat([place[:, :0], *(wave(angle) for angle in angles for wave in (torch.sin, torch.cos))], dim=1)


def mapping_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 1 - the mean cosine of rows (P, C), predicted beside measured."""
    return 1 - F.cosine_similarity(predicted, target, dim=1, eps=1e-6).mean()


class MentorFusion(nn.Module):
    """A narrow feature of both modalities, learned by letting the patches of one place find each other.

    Source: Mentor3AD (arXiv 2505.21420), mentor of fusion, as reviews describe it: an MLP per modality, an MLP on both, a contrast
    of aligned patches. Widths, temperature and the head that lets the contrast reach the mentor are a reconstruction (trained sheet, 6).

    Args:
        rgb_channels, xyz_channels: widths of the features.
        mentor: width of the mentor feature; narrow, since it holds the modality that it helps to predict.
        shared: width of the space in which the modalities are compared.
        temperature: of the contrast.
    """

    def __init__(self, rgb_channels: int, xyz_channels: int, mentor: int = 16, shared: int = 256, temperature: float = 0.07) -> None:
        super().__init__()
        self.rgb, self.xyz = make_mlp([rgb_channels, shared, shared]), make_mlp([xyz_channels, shared, shared])
        self.join, self.head = make_mlp([2 * shared, shared, mentor]), nn.Linear(mentor, shared)
        self.temperature = temperature

    def embed(self, rgb: Tensor, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Bring patches (P, C) and (P, C') to the space in which they are compared, (P, S) each; only directions count there."""
        return self.rgb(rgb), self.xyz(xyz)

    def forward(self, rgb: Tensor, xyz: Tensor) -> Tensor:
        """Return the mentor feature (P, M) of patches (P, C) and (P, C') of the same places."""
        return self.join(torch.cat(self.embed(rgb, xyz), dim=1))

    def loss(self, rgb: Tensor, xyz: Tensor) -> dict[str, Tensor]:
        """Contrast the modalities in both directions, and the mentor with what they agree on (InfoNCE).

        Args:
            rgb, xyz: (P, C) and (P, C') patches, row p of both from one place.
        """
        parts = self.embed(rgb, xyz)
        a, b = (F.normalize(part, dim=1) for part in parts)
        mentor = F.normalize(self.head(self.join(torch.cat(parts, dim=1))), dim=1)
        agreed = F.normalize(a + b, dim=1).detach()
        return {
            "pairs": (contrast(a, b, self.temperature) + contrast(b, a, self.temperature)) / 2,
            "mentor": contrast(mentor, agreed, self.temperature),
        }
