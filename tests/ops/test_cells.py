"""Cells: points sorted into them, values looked up."""

from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import look_up, voxelize
from mm3dad.ops.cells import make_keys, read_keys


def test_voxelize_sorts_points_into_cells():
    points = torch.tensor([[0.05, 0.05, 0.05], [-0.05, 0.0, 0.0], [0.09, 0.01, 0.0], [0.31, 0.0, 0.0]])
    cells, owner = voxelize(points, 0.1)
    assert cells.tolist() == [[-1, 0, 0], [0, 0, 0], [3, 0, 0]] and owner.tolist() == [1, 0, 1, 2]


def test_numbers_are_in_the_order_of_cells_and_lead_back():
    cells = torch.randint(-(2**19) + 1, 2**19, (500, 3), generator=torch.Generator().manual_seed(0))
    keys = make_keys(cells)
    assert torch.equal(read_keys(keys), cells) and int(keys.min()) >= 0
    assert sorted(cells.tolist()) == read_keys(keys.sort().values).tolist()


def test_look_up_reads_what_is_there_and_passes_gradients():
    cells = torch.tensor([[-2, 0, 5], [0, 0, 0], [0, 0, 1]])
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    wanted = torch.tensor([[0, 0, 1], [9, 9, 9], [-2, 0, 5], [0, 0, 1]])
    found = look_up(cells, values, wanted)
    assert found.tolist() == [[5, 6], [0, 0], [1, 2], [5, 6]]
    found.sum().backward()
    assert values.grad.tolist() == [[1, 1], [0, 0], [2, 2]]
    assert look_up(cells[:0], values[:0], wanted).tolist() == [[0, 0]] * 4
    assert look_up(cells, values, wanted[:0]).shape == (0, 2)


def test_bad_input():
    cells = torch.zeros(1, 3, dtype=torch.int64)
    for call, error, text in (
        (lambda: voxelize(torch.rand(4, 3), 0.0), ConfigError, "above 0"),
        (lambda: voxelize(torch.rand(4, 3) + 1, 1e-9), ConfigError, "raise it"),
        (lambda: voxelize(torch.rand(0, 3), 1.0), ShapeError, "at least 1"),
        (lambda: look_up(cells[[0, 0]], torch.ones(2, 1), cells), ShapeError, "must ascend"),
        (lambda: look_up(cells, torch.ones(2, 1), cells), ShapeError, "1 cells and 2 rows"),
        (lambda: look_up(cells, torch.ones(1, 1), cells.int()), ShapeError, "wanted must be"),
    ):
        with pytest.raises(error, match=text):
            call()
