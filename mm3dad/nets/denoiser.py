"""The noise predictor of a diffusion model, and its three readings as a map of what is unlike the pictures it was trained on.

After "Single-Step Reconstruction-Free Anomaly Detection and Segmentation via Diffusion Models" (RADAR, arXiv 2508.04818): one forward
pass, no reverse sampling. The network is diffusers' `UNet2DModel`; schedule and loss are DDPM's (Ho et al., NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm3dad.errors import ConfigError
from mm3dad.ops.slopes import find_slopes

STEPS = 1000  # of the forward process
LOW, HIGH = 1e-4, 0.02  # its linear betas
GROUPS = 8  # of the norms, and channels of an attention head


class Denoiser(nn.Module):
    """A U-Net with attention on its coarsest level that predicts the noise in a picture.

    Args:
        channels: of the pictures.
        widths: channels of each level, finest first; multiples of 8.
    Raises:
        ConfigError: diffusers is not installed, fewer than two levels, or a width that is no multiple of 8.
    """

    signal: Tensor

    def __init__(self, channels: int, widths: Sequence[int] = (16, 32, 32)) -> None:
        super().__init__()
        if len(widths) < 2 or any(width < GROUPS or width % GROUPS for width in widths):
            raise ConfigError(f"widths must be two or more multiples of {GROUPS}, got {tuple(widths)}; 16,32,32 is the default")
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            raise ConfigError("the denoiser needs the package diffusers; pip install 'mm3dad[diffusion]'") from error
        plain = len(widths) - 1
        self.net = UNet2DModel(
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=tuple(widths),
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            norm_num_groups=GROUPS,
            attention_head_dim=GROUPS,
        )
        self.fold = 2**plain
        self.register_buffer("signal", torch.cumprod(1 - torch.linspace(LOW, HIGH, STEPS), 0), persistent=False)

    def add_noise(self, pictures: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Return sqrt(abar_t) x + sqrt(1 - abar_t) e of pictures and noise (B, C, H, W) at steps (B,) int64."""
        kept = self.signal[step].view(-1, 1, 1, 1)
        return kept.sqrt() * pictures + (1 - kept).sqrt() * noise

    def forward(self, pictures: Tensor, step: Tensor) -> Tensor:
        """Predict the noise in pictures (B, C, H, W), H and W divisible by `fold`, at steps (B,) int64."""
        predicted: Tensor = self.net(pictures, step).sample
        return predicted

    def loss(self, pictures: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Return the mean squared error of the predicted noise."""
        return functional.mse_loss(self(self.add_noise(pictures, noise, step), step), noise)

    def predict_clean(self, pictures: Tensor, step: int) -> Tensor:
        """Return the noise the network sees in pictures (B, C, H, W) to which none was added: one pass, no draw."""
        return self(pictures, torch.full((len(pictures),), step, device=pictures.device))

    def predict_residual(self, pictures: Tensor, step: int, noises: Tensor) -> Tensor:
        """Return predicted less added noise of pictures (B, C, H, W), averaged over the draws `noises` (K, C, H, W).

        Less the added one: the prediction itself is mostly what was drawn, whatever lies in the picture.
        """
        steps = torch.full((len(pictures),), step, device=pictures.device)
        found = [self(self.add_noise(pictures, noise.expand_as(pictures), steps), steps) - noise for noise in noises]
        return torch.stack(found).mean(0)


def measure_edges(values: Tensor) -> Tensor:
    """Return the Sobel magnitude of each channel of (B, C, H, W), mirrored at the border."""
    down, across = find_slopes(values)
    return (down.square() + across.square()).sqrt()


def cut_tiles(picture: Tensor, side: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Cut a picture (C, H, W) into half-overlapping squares; the last ones end at its border.

    Returns:
        (T, C, side, side) and the upper left corner of each.
    Raises:
        ConfigError: the squares are larger than the picture.
    """
    if side > min(picture.shape[-2:]):
        raise ConfigError(f"tiles must fit into the picture, {tuple(picture.shape[-2:])}, got {side}; lower patch")
    rows, columns = (sorted({*range(0, size - side, max(1, side // 2)), size - side}) for size in picture.shape[-2:])
    corners = [(row, column) for row in rows for column in columns]
    return torch.stack([picture[:, row : row + side, column : column + side] for row, column in corners]), corners


def join_tiles(tiles: Tensor, corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Put tiles (T, C, side, side) back to a picture (C, H, W), the mean where several lie."""
    total, count = tiles.new_zeros(tiles.shape[1], *size), tiles.new_zeros(size)
    side = tiles.shape[-1]
    for tile, (row, column) in zip(tiles, corners, strict=True):
        total[:, row : row + side, column : column + side] += tile
        count[row : row + side, column : column + side] += 1
    return total / count
