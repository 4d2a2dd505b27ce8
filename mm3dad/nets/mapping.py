"""Maps between the features of two modalities: image and point patches of one place predict each other."""

from __future__ import annotations

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
    """Two MLPs, one from image to point features and one back; hidden layers have the mean width of input and output.

    Source: CFM, "Multimodal Industrial Anomaly Detection by Crossmodal Feature Mapping" (CVPR 2024); multimodal sheet, 6.

    Args:
        rgb_channels, xyz_channels: widths of the features.
        layers: linear layers of each MLP; 3 is published, 7 in the published code's large variant.
        guide: channels of a guiding feature that both MLPs see beside their input (Mentor3AD); 0 has none.
    """

    def __init__(self, rgb_channels: int, xyz_channels: int, layers: int = 3, guide: int = 0) -> None:
        super().__init__()
        hidden = [(rgb_channels + xyz_channels + guide) // 2] * (layers - 1)
        self.to_xyz = make_mlp([rgb_channels + guide, *hidden, xyz_channels])
        self.to_rgb = make_mlp([xyz_channels + guide, *hidden, rgb_channels])

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


def mapping_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 1 - the mean cosine of rows (P, C), predicted beside measured."""
    return 1 - F.cosine_similarity(predicted, target, dim=1, eps=1e-6).mean()


class MentorFusion(nn.Module):
    """A narrow feature of both modalities, learned by letting the patches of one place find each other.

    Source: Mentor3AD (arXiv 2505.21420), the mentor of fusion, as reviews describe it; widths and temperature are a reconstruction
    (trained sheet, 6.2 and 6.3).

    Args:
        rgb_channels, xyz_channels: widths of the features.
        shared: width of the space in which the modalities are compared.
        mentor: width of the mentor feature; narrow, since it holds the modality that it helps to predict.
        temperature: of the contrast.
    """

    def __init__(self, rgb_channels: int, xyz_channels: int, shared: int = 256, mentor: int = 128, temperature: float = 0.07) -> None:
        super().__init__()
        self.rgb, self.xyz = make_mlp([rgb_channels, shared, shared]), make_mlp([xyz_channels, shared, shared])
        self.join = make_mlp([2 * shared, shared, mentor])
        self.temperature = temperature

    def embed(self, rgb: Tensor, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Bring patches (P, C) and (P, C') of the same places to the space in which they are compared: (P, S) each, of unit length."""
        return F.normalize(self.rgb(rgb), dim=1), F.normalize(self.xyz(xyz), dim=1)

    def forward(self, rgb: Tensor, xyz: Tensor) -> Tensor:
        """Return the mentor feature (P, M) of patches (P, C) and (P, C') of the same places."""
        return self.join(torch.cat([self.rgb(rgb), self.xyz(xyz)], dim=1))

    def loss(self, rgb: Tensor, xyz: Tensor) -> Tensor:
        """Contrast pairs (P, C) and (P, C') in both directions (InfoNCE, the mean of the two)."""
        a, b = self.embed(rgb, xyz)
        return (contrast(a, b, self.temperature) + contrast(b, a, self.temperature)) / 2
