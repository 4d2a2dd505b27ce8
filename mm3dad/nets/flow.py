"""Conditional normalising flow of coupling blocks, and the losses that fit it to normal and anomalous residuals (ResAD).

Sources: the all-in-one block of FrEIA (Ardizzone et al.) as ResAD uses it (NeurIPS 2024, arXiv 2410.20047; IJCV 2026, arXiv 2509.23741;
retrieval sheet, 4.5). The transforms are zuko's, which knows their inverse and log-determinant (extra `[flow]`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ConfigError, MissingPackageError


class ConditionalFlow(nn.Module):
    """Blocks of an affine coupling, a global scale and offset, and a fixed rotation.

    Args:
        channels: of what is transformed, C >= 2.
        condition: channels of the condition; 0 for none.
        blocks: how many.
        clamp: most a coupling's log-scale can be.
        seed: of the rotations; the weights follow torch's generator.

    Raises:
        ConfigError: fewer than two channels.
        MissingPackageError: zuko is not installed.
    """

    def __init__(self, channels: int, condition: int = 0, blocks: int = 8, clamp: float = 1.9, seed: int = 0) -> None:
        super().__init__()
        if channels < 2:
            raise ConfigError(f"a coupling flow needs at least 2 channels, got {channels}")
        _import_zuko()
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleList(_Block(channels, condition, clamp, generator) for _ in range(blocks))

    def forward(self, values: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Transform (B, C) values, under a condition (B, D): latents (B, C) and log-determinants (B,)."""
        total = values.new_zeros(len(values))
        for block in self.blocks:
            values, gain = block.transform(condition).call_and_ladj(values)
            total = total + gain
        return values, total

    def inverse(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the (B, C) values whose latents these are."""
        for block in reversed(self.blocks):
            latents = block.transform(condition).inv(latents)
        return latents


class _Block(nn.Module):
    def __init__(self, channels: int, condition: int, clamp: float, generator: torch.Generator) -> None:
        super().__init__()
        self.kept, self.clamp = channels - channels // 2, clamp
        seen = self.kept + condition
        self.subnet = nn.Sequential(nn.Linear(seen, 2 * seen), nn.ReLU(), nn.Linear(2 * seen, 2 * (channels // 2)))
        self.scale = nn.Parameter(torch.full((channels,), 2 * math.log(math.expm1(5.0))))  # a global scale of 1
        self.offset = nn.Parameter(torch.zeros(channels))
        drawn, upper = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))
        self.register_buffer("rotation", drawn * upper.diagonal().sign())  # in float64, for an exact inverse there

    def transform(self, condition: Tensor | None) -> Any:
        """Return the block as one invertible transform."""
        zuko = _import_zuko()

        def couple(kept: Tensor) -> Any:
            found = 0.1 * self.subnet(kept if condition is None else torch.cat([kept, condition], dim=1))
            rise, shift = found.chunk(2, dim=1)
            return _affine(shift, (self.clamp * rise.tanh()).exp())

        mask = torch.arange(len(self.scale), device=self.scale.device) < self.kept
        stretch = _affine(self.offset, 0.1 * F.softplus(self.scale, beta=0.5))
        turn = zuko.transforms.RotationTransform(torch.zeros_like(self.rotation))
        turn.R = self.rotation.to(self.offset.dtype)
        return zuko.transforms.ComposedTransform(zuko.transforms.CouplingTransform(couple, mask), stretch, turn)


def _affine(shift: Tensor, factor: Tensor) -> Any:
    zuko = _import_zuko()
    return zuko.transforms.DependentTransform(torch.distributions.AffineTransform(shift, factor), 1)


def _import_zuko() -> Any:
    try:
        import zuko
    except ImportError as error:
        raise MissingPackageError("the flow of resad needs zuko; install it with: pip install 'mm3dad[flow]'") from error
    return zuko


def encode_position(channels: int, grid: tuple[int, int]) -> Tensor:
    """Return sines and cosines of column (first half of the channels) and row (second half): (D, h, w).

    Args:
        channels: D, a multiple of 4.
        grid: (h, w).

    Raises:
        ConfigError: channels that are not a positive multiple of 4.
    """
    if channels < 4 or channels % 4:
        raise ConfigError(f"a position code needs a positive multiple of 4 channels, got {channels}")
    height, width = grid
    half = channels // 2
    rate = torch.exp(torch.arange(0, half, 2) * (-math.log(10000.0) / half))
    code = torch.zeros(channels, height, width)
    for start, places, is_row in ((0, width, False), (half, height, True)):
        angle = rate[:, None] * torch.arange(places)
        for phase, wave in enumerate((angle.sin(), angle.cos())):
            code[start + phase : start + half : 2] = wave[:, :, None] if is_row else wave[:, None]
    return code


def log_likelihoods(latents: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-likelihoods per channel of being normal (latents around 0) and anomalous (around the all-ones vector), (B,) each.

    Args:
        latents: (B, C) floating.
        gains: (B,) log-determinants.
    """
    channels = latents.shape[1]
    base = gains - channels / 2 * math.log(2 * math.pi)
    return tuple((base - 0.5 * (latents - center).square().sum(1)) / channels for center in (0.0, 1.0))  # type: ignore[return-value]


def normal_boundary(normal: Tensor, quantile: float = 0.05) -> Tensor:
    """Return the log-likelihood below which a share of the normal values (n,) lies, by position without interpolation."""
    return normal.sort().values[int(quantile * len(normal))]


def boundary_losses(likelihood: Tensor, is_normal: Tensor, boundary: float | Tensor, margin: float = 0.1) -> tuple[Tensor, Tensor]:
    """Punish normal values below the boundary and anomalous ones above boundary - margin, means of softplus over the offenders.

    Args:
        likelihood: (B,) log-likelihoods of being normal.
        is_normal: (B,) bool.
        boundary: as `normal_boundary` gives it.
        margin: between both kinds; 0.1 is published.
    """
    low = likelihood[is_normal & (likelihood <= boundary)]
    high = likelihood[~is_normal & (likelihood >= boundary - margin)]
    return _mean(F.softplus(boundary - low)), _mean(F.softplus(high - boundary + margin))


def separation_focal(normal: Tensor, anomalous: Tensor, is_normal: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the focal loss of softmax over both log-likelihoods (B,), against which cells are normal."""
    right = torch.where(is_normal[:, None], torch.stack([normal, anomalous], 1), torch.stack([anomalous, normal], 1)).log_softmax(1)[:, 0]
    return ((1 - right.exp()).pow(gamma) * -right).mean()


def _mean(values: Tensor) -> Tensor:
    """Mean, or a zero that keeps the graph where there is none."""
    return values.mean() if values.numel() else values.sum()
