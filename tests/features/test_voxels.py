from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ShapeError
from mm3dad.features.voxels import CHANNELS, measure_voxels, table_frame
from mm3dad.types import Sample
from tests.methods.parts import make_sample


def make_plane(side=40, step=0.001):
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([column.flatten() * step, row.flatten() * step, torch.full((side * side,), 0.5)], dim=1)


def test_a_plane_a_line_and_a_point():
    size = 0.004
    flat = measure_voxels(make_plane(), size)
    inner = (torch.bincount(flat.owner) == 16).nonzero()[:, 0]
    assert len(inner) > 50 and flat.features.shape == (len(flat.cells), CHANNELS)
    wanted = torch.tensor([1.0, 0, 1, 0, 0, 0, 0, 0])
    torch.testing.assert_close(flat.features[inner], wanted.expand(len(inner), -1), atol=1e-3, rtol=0)
    line = measure_voxels(torch.tensor([[0.0, 0, 0.5], [0.001, 0, 0.5], [0.002, 0, 0.5]]), size)
    torch.testing.assert_close(line.features[0, :4], torch.tensor([1.0, 1, 0, 0]))
    one = measure_voxels(torch.tensor([[0.0, 0, 0.5]] * 3), size)
    assert one.features.tolist() == [[1] + [0] * (CHANNELS - 1)]


def test_height_is_above_the_surroundings_in_cells_towards_the_sensor():
    size, points = 0.002, make_plane(80)
    middle = (points[:, :2] - 0.04).norm(dim=1) < 0.004
    points[middle, 2] -= 0.003  # nearer to the sensor
    found = measure_voxels(points, size)
    bump = found.middle[:, 2] < 0.499
    assert bump.any() and float(found.features[bump, 6].mean()) == pytest.approx(1.5, abs=0.2)
    assert float(found.features[~bump, 6].abs().median()) < 0.1
    owned = torch.stack([points[found.owner == number].mean(0) for number in range(5)])
    torch.testing.assert_close(found.middle[:5], owned)


def test_the_frame_stands_on_the_table():
    sample = make_sample(0)
    points = sample.xyz.flatten(1).T[sample.valid.flatten()]
    axes = table_frame(sample, points)
    torch.testing.assert_close(axes @ axes.T, torch.eye(3), atol=1e-5, rtol=0)
    assert float(torch.linalg.det(axes)) == pytest.approx(1, abs=1e-5) and float(axes[2] @ points.mean(0)) < 0
    cloud = Sample(xyz=points.T[:, None].contiguous())
    assert float(table_frame(cloud, points)[2] @ axes[2]) > 0.9


def test_bad_input():
    with pytest.raises(ShapeError, match="at least 1 rows, got 0"):
        measure_voxels(torch.zeros(0, 3), 0.1)
