"""A network that says how much a distance counts in the direction in which it was measured (G2SF)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaleNet(nn.Module):
    """Local scales of two modalities from the direction to a prototype and the prototype itself, and one global weight for each.

    Source: G2SF (ICCV 2025, arXiv 2503.10091), the local scale prediction network; trained sheet, 2.2.

    Args:
        channels: of the features of both modalities side by side.
        hidden, code: widths of the layers that read direction and prototype.
        joint: width of the layer that reads both codes.
        dropout: of the hidden layers while training.
    """

    def __init__(self, channels: int, hidden: int = 512, code: int = 128, joint: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.direction = _encoder(channels, hidden, code, dropout)
        self.prototype = _encoder(channels, hidden, code, dropout)
        self.regressor = nn.Sequential(nn.Linear(2 * code, joint), nn.ReLU(), nn.Dropout(dropout), nn.Linear(joint, 2))
        self.balance = nn.Parameter(torch.zeros(2))

    def forward(self, direction: Tensor, prototype: Tensor) -> Tensor:
        """Return the scales of both modalities, (B, 2) in [1/e, e].

        Args:
            direction: (B, C), as `fusion.metric.encode_direction` gives it.
            prototype: (B, C) floating.
        """
        codes = torch.cat([self.direction(direction), self.prototype(prototype)], dim=1)
        return self.regressor(codes).tanh().exp()

    @property
    def shares(self) -> Tensor:
        """The global weights (2,): positive, together 1, even before training."""
        weight = 0.5 * (self.balance.tanh() + 1)
        return weight / weight.sum()

    def penalty(self) -> Tensor:
        """Return the sum of magnitudes of all linear layers' weights, without their biases."""
        return torch.stack([layer.weight.abs().sum() for layer in self.modules() if isinstance(layer, nn.Linear)]).sum()


def _encoder(channels: int, hidden: int, code: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, code))
