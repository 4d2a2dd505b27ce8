"""Statistics of groups of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm3dad.errors import ShapeError
from mm3dad.ops import row_statistics


@pytest.mark.parametrize(("rows", "width", "groups", "count"), [(1, 1, 1, 2), (50, 33, 7, 128), (200, 5, 1, 3), (9, 70, 40, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_definition(rows, width, groups, count, dtype):
    generator = torch.Generator().manual_seed(rows)
    values = torch.rand(rows, width, generator=generator, dtype=dtype)
    index = torch.randint(0, rows, (groups, count), generator=generator)
    found = row_statistics(values, index)
    members = values.double().numpy()[index.numpy()]
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.concatenate([members.mean(axis=1), members.std(axis=1, ddof=1)], axis=1), atol=1e-6)


def test_equal_rows_have_no_spread():
    found = row_statistics(torch.full((3, 4), 0.1), torch.tensor([[0, 1, 2], [1, 1, 1]]))
    torch.testing.assert_close(found, torch.tensor([[0.1] * 4 + [0.0] * 4] * 2))


def test_threads_change_no_bit():
    values, index, threads = torch.rand(100, 33), torch.randint(0, 100, (50, 20)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = row_statistics(values, index)
        torch.set_num_threads(2)
        together = row_statistics(values, index)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone, together)


def test_errors():
    values = torch.zeros(3, 2)
    with pytest.raises(ShapeError, match=r"index must be \(G, K\) int64 with K >= 2, got \(1, 1\)"):
        row_statistics(values, torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ShapeError, match="index must lie in 0 to 2, got 0 to 3"):
        row_statistics(values, torch.tensor([[0, 3]]))
    with pytest.raises(ShapeError, match="values must be finite"):
        row_statistics(torch.full((3, 2), torch.nan), torch.tensor([[0, 1]]))
