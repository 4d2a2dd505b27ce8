"""The rows of the point operations: every peer computes the same as we do."""

from __future__ import annotations

import pytest

from benchmarks.harness import UnavailableError, measure
from benchmarks.rows.geometry import ROWS


@pytest.mark.parametrize("name", ROWS)
def test_peers_agree(name):
    try:
        row = ROWS[name](True)
    except UnavailableError as error:
        assert "pip install" in str(error)
        return
    peers = measure(row, repeats=1)["peers"]
    assert all(peer["same"] for peer in peers.values()), {name: peer["difference"] for name, peer in peers.items()}
