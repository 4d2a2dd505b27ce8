"""Small convolutional networks on pictures: a reconstructor without shortcuts, a discriminator of two streams with them.

Forms after DRAEM (Zavrtanik et al., ICCV 2021), whose discriminator is given a second encoder; each first turns 2 x 2 pixels into
channels, which quarters the work and loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm3dad.errors import ConfigError

FOLD = 2  # pixels a side that become channels
PRIOR = -3.0  # logit of a defect before training


class Reconstructor(nn.Module):
    """Encoder and decoder without shortcuts, so that what was never seen does not pass.

    Args:
        channels: of the picture.
        width: channels of the first level; each level doubles them up to four times.
        levels: halvings of the folded picture.
    """

    def __init__(self, channels: int, width: int = 16, levels: int = 3) -> None:
        super().__init__()
        widths = _widths(width, levels)
        self.encoder = _Encoder(channels * FOLD**2, widths)
        self.ups = nn.ModuleList(_block(wide, narrow) for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.last = nn.Conv2d(widths[0], channels * FOLD**2, 3, padding=1)
        _start(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """Reconstruct (B, channels, H, W); H and W divisible by 2^(levels + 1)."""
        values = self.encoder(functional.pixel_unshuffle(pictures, FOLD))[-1]
        for up in self.ups:
            values = up(_double(values))
        return functional.pixel_shuffle(self.last(values), FOLD)


class DualDiscriminator(nn.Module):
    """One encoder per stream, whose features meet at each level, and one decoder to a probability per pixel.

    Args:
        channels: of each stream.
        width, levels: as `Reconstructor`.
    """

    def __init__(self, channels: Sequence[int], width: int = 16, levels: int = 3) -> None:
        super().__init__()
        widths = _widths(width, levels)
        self.encoders = nn.ModuleList(_Encoder(count * FOLD**2, widths) for count in channels)
        streams = len(channels)
        wide = [streams * widths[-1], *widths[-2::-1]]
        self.ups = nn.ModuleList(_block(wide[n] + streams * widths[-2 - n], wide[n + 1]) for n in range(levels))
        self.last = nn.Conv2d(widths[0], FOLD**2, 3, padding=1)
        _start(self)
        # Defects are rare: a start at their frequency, not at one half (Lin et al., ICCV 2017, section 4.1).
        nn.init.constant_(self.last.bias, PRIOR)  # type: ignore[arg-type]

    def forward(self, streams: Sequence[Tensor]) -> Tensor:
        """Return the probability of a defect, (B, H, W) in (0, 1), from one (B, channels, H, W) per stream."""
        found = [encoder(functional.pixel_unshuffle(one, FOLD)) for encoder, one in zip(self.encoders, streams, strict=True)]
        levels = [torch.cat(level, dim=1) for level in zip(*found, strict=True)]
        values = levels[-1]
        for up, shortcut in zip(self.ups, levels[-2::-1], strict=True):
            values = up(torch.cat([_double(values), shortcut], dim=1))
        return functional.pixel_shuffle(self.last(values), FOLD)[:, 0].sigmoid()


class _Encoder(nn.Module):
    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_block(a, b) for a, b in zip((channels, *widths[:-1]), widths, strict=True))

    def forward(self, values: Tensor) -> list[Tensor]:
        found = []
        for number, level in enumerate(self.levels):
            values = level(functional.max_pool2d(values, 2) if number else values)
            found.append(values)
        return found


def _block(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside in (channels, width):
        layers += [nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def _double(values: Tensor) -> Tensor:
    return functional.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)


def _widths(width: int, levels: int) -> list[int]:
    if width < 1 or levels < 1:
        raise ConfigError(f"width and levels must be at least 1, got {width} and {levels}")
    return [width * min(2**level, 4) for level in range(levels + 1)]


def _start(net: nn.Module) -> None:
    """Draw weights as DRAEM does for its norms, and by fan-in for its convolutions: N(0, 0.02) starts narrow networks too flat."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
