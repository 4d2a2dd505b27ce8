"""The feature constraintor of ResAD, which pulls normal residuals into a thin shell, its losses, and the codebook of normal residuals.

Source: ResAD (NeurIPS 2024, arXiv 2410.20047) and ResAD++ (IJCV 2026, arXiv 2509.23741); retrieval sheet, 4.3 and 4.4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

RADIUS = 0.4  # largest radius of the shell
EPSILON = 1e-12


class Constraintor(nn.Module):
    """A 3 x 3 convolution of the same width, batch norm and ReLU.

    Args:
        channels: of the residuals of one level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, residuals: Tensor) -> Tensor:
        """Constrain (B, C, h, w) residuals."""
        return self.bn(self.conv(residuals)).relu()


class Codebook(nn.Module):
    """Codes of normal residuals; what is far from all of them is rare.

    Args:
        channels: of the residuals.
        codes: how many; 1536 is published.
    """

    def __init__(self, channels: int, codes: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.empty(codes, channels).uniform_(-1 / codes, 1 / codes))

    def forward(self, residuals: Tensor) -> Tensor:
        """Return the nearest code of each of (B, C) residuals."""
        with torch.no_grad():
            nearest = torch.cdist(residuals, self.codes).argmin(1)
        return self.codes[nearest]

    def loss(self, residuals: Tensor, commitment: float = 0.25) -> Tensor:
        """Pull codes to the residuals (B, C), and residuals to the codes where they carry a gradient."""
        found = self(residuals)
        return F.mse_loss(found, residuals.detach()) + commitment * F.mse_loss(found.detach(), residuals)


def measure_radius(features: Tensor) -> Tensor:
    """Return A = sqrt(|x| + 1) - 1 of each row (B, C): (B,), with a finite gradient at 0."""
    return (features.square().sum(1).clamp_min(EPSILON).sqrt() + 1).sqrt() - 1


def plain_occ_loss(features: Tensor, target: Tensor, is_normal: Tensor) -> Tensor:
    """Pull normal rows to the origin and keep anomalous ones where they were: mean radius + mean squared change.

    Args:
        features, target: (B, C), output and input of the constraintor.
        is_normal: (B,) bool.
    """
    return _mean(measure_radius(features[is_normal])) + _mean((features - target)[~is_normal].square())


def shell_occ_loss(features: Tensor, target: Tensor, is_normal: Tensor, inner: bool = True, barrier: bool = True) -> Tensor:
    """Pull normal rows into a shell around the origin instead: beyond its radius inwards, and below it outwards.

    The radius is 0.9 of the least anomalous one, at most 0.4. Anomalous rows keep their place.

    Args:
        features, target, is_normal: as `plain_occ_loss`.
        inner: also push normal rows out of the inside of the shell.
        barrier: weigh a distance from the shell by exp times softplus of it, else by itself; the published code then takes 1.01 of the
            radius for the inside.
    """
    radius = measure_radius(features)
    outer, within = _shell(radius[~is_normal], barrier)
    normal = radius[is_normal]
    shape = _barrier if barrier else (lambda excess: excess)
    total = _mean(shape(normal[normal > outer] - outer))
    if inner:
        total = total + _mean(shape(within - normal[normal < within]))
    return total + _mean((features - target)[~is_normal].square())


def occ_loss(features: Tensor, target: Tensor, is_normal: Tensor, reach: float = 0.1) -> Tensor:
    """Return ResAD++'s loss: normal rows into the shell from both sides, anomalous ones kept in place, in direction, and out of its reach.

    Args:
        features, target, is_normal: as `plain_occ_loss`; without an anomalous row the shell has its largest radius.
        reach: beyond the radius, that anomalous rows must keep.
    """
    total = shell_occ_loss(features, target, is_normal)
    anomalous = features[~is_normal]
    if not len(anomalous):
        return total
    radius = measure_radius(anomalous)
    outer = _shell(radius, True)[0] + reach
    turned = 1 - F.cosine_similarity(anomalous, target[~is_normal], dim=1)
    return total + turned.mean() + _mean(_barrier(outer - radius[radius < outer]))


def orthogonal_penalty(normal: Tensor) -> Tensor:
    """Return half the mean squared difference of Z^T Z from the identity, Z the normal rows (B, C), raw sums (for signed residuals)."""
    return 0.5 * (normal.T @ normal - torch.eye(normal.shape[1]).to(normal)).square().mean()


def _shell(anomalous: Tensor, barrier: bool) -> tuple[float, float]:
    outer = min(0.9 * float(anomalous.detach().min()), RADIUS) if len(anomalous) else RADIUS
    return outer, (0.99 if barrier else 1.01) * outer


def _barrier(excess: Tensor) -> Tensor:
    return excess.detach().exp() * F.softplus(excess)


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.sum()
