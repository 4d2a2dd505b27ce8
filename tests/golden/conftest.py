"""Where the numbers computed by the published implementations lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Arrays]:
    """Return a loader of golden files by method name; MM3DAD_GOLDEN names another folder of files with the same keys."""
    folder = Path(os.environ.get("MM3DAD_GOLDEN", Path(__file__).parent / "data"))

    def load(name: str) -> Arrays:
        with np.load(folder / f"{name}.npz") as file:
            return dict(file)

    return load
