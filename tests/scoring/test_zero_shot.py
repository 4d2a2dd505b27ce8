"""The image score that mixes a map with the image's own probability."""

from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError
from mm3dad.scoring.zero_shot import mix_score


def test_mixes_both_ends():
    heat = torch.arange(100.0).view(10, 10) / 100
    assert mix_score(heat, 0.3, 0.02, 1.0) == pytest.approx(0.3)
    assert mix_score(heat, 0.3, 0.02, 0.0) == pytest.approx(0.985)
    assert mix_score(heat, 0.3, 0.02, 0.7) == pytest.approx(0.7 * 0.3 + 0.3 * 0.985)
    with pytest.raises(ConfigError, match="share must lie in"):
        mix_score(heat, 0.3, 0.02, 1.1)
