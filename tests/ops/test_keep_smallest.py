"""The smallest entries, block by block, against a sort of the whole row."""

from __future__ import annotations

import pytest
import torch

from mm3dad.ops.keep_smallest import keep_smallest


def keep_all(matrix, squares, count, block):
    values = matrix.new_full((len(matrix), count), torch.inf)
    index = torch.zeros((len(matrix), count), dtype=torch.int64)
    for first in range(0, matrix.shape[1], block):
        part = matrix[:, first : first + block].contiguous()
        values, index = keep_smallest(values, index, part, squares[first : first + block].contiguous(), first)
    return values, index


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "count", "block"), [((1, 1), 1, 1), ((5, 300), 7, 64), ((3, 1000), 33, 131), ((4, 200), 200, 70)])
def test_equals_a_sort(shape, count, block, dtype):
    generator = torch.Generator().manual_seed(count)
    matrix = torch.randn(shape, generator=generator, dtype=dtype)
    squares = torch.rand(shape[1], generator=generator, dtype=dtype)
    values, index = keep_all(matrix, squares, count, block)
    expected, order = (matrix + squares).sort(dim=1, stable=True)
    found, place = values.sort(dim=1)
    assert torch.equal(found, expected[:, :count])
    assert torch.equal(index.gather(1, place), order[:, :count])


def test_fewer_columns_than_kept_leaves_infinity():
    values, index = keep_all(torch.tensor([[2.0, 1.0]]), torch.zeros(2), 4, 8)
    assert sorted(values[0].tolist()) == [1.0, 2.0, torch.inf, torch.inf]
    assert sorted(index[0, values[0].isfinite()].tolist()) == [0, 1]


def test_equal_entries_come_once_each():
    values, index = keep_all(torch.ones(3, 500), torch.zeros(500), 20, 90)
    assert torch.equal(values, torch.ones(3, 20))
    assert all(len(set(row)) == 20 for row in index.tolist())


def test_threads_change_nothing(monkeypatch):
    matrix = torch.randn(33, 700, generator=torch.Generator().manual_seed(0))
    found = {}
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found[threads] = keep_all(matrix, torch.zeros(700), 9, 128)
    assert all(torch.equal(one, other) for one, other in zip(found[1], found[2], strict=True))
