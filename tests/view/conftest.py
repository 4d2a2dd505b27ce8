from __future__ import annotations

import pytest

from mm3dad.types import Sample
from tests.view.parts import make_sample


@pytest.fixture
def sample() -> Sample:
    return make_sample()
