"""The rows of the voting convolution: the dense peer computes the same, and the cells fill less than 5 %."""

from __future__ import annotations

import re

import pytest

from benchmarks.harness import measure
from benchmarks.rows.voting import ROWS


@pytest.mark.parametrize("name", ROWS)
def test_peers_compute_the_same(name):
    row = ROWS[name](quick=True)
    share = float(re.search(r"([\d.]+)% of a box", row.inputs)[1])
    assert 0 < share <= 5
    found = measure(row, repeats=1)
    assert found["peers"]["torch conv3d"]["same"] and found["peers"]["torch conv3d"]["reach"] == 1
    assert ("growth" in found) == (name == "sparse_vote_conv")
