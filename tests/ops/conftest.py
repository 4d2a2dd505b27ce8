"""Every test of an op runs twice: on the torch reference and on the native kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(params=["reference", "native"], scope="module", autouse=True)
def ops_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which code the ops run; `native` fails, and says how to build them, where the kernels are missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MM3DAD_OPS", request.param)
        yield request.param
