"""The image score of methods that judge an image as a whole and by its map."""

from __future__ import annotations

from torch import Tensor

from mm3dad.errors import ConfigError
from mm3dad.scoring.maps import top_fraction_score


def mix_score(heat: Tensor, probability: float, top: float, share: float) -> float:
    """Return (1 - share) * mean of the map's highest values + share * the image's own probability (MRAD; retrieval sheet, 3.3).

    Args:
        heat: (H, W) floating, probabilities of pixels.
        probability: of the image, in [0, 1].
        top: share of the highest pixels.
        share: in [0, 1]; published 0.7.

    Raises:
        ConfigError: a share out of range.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share must lie in [0, 1], got {share}; 0.7 is published")
    return (1 - share) * top_fraction_score(heat, top) + share * probability
