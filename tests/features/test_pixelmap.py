"""Point features on the patch grid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mm3dad.errors import DataError
from mm3dad.features.pixelmap import PointCells, fit_scale, pool_points, resample_cloud
from mm3dad.nets.point_transformer import PointTransformer
from tests.methods.parts import make_cloud, make_sample


def test_resampling_takes_measured_points_only():
    sample = make_sample(0, size=(40, 60))
    points, pixel = resample_cloud(sample.xyz, sample.valid, 20)
    rows, columns = pixel // 20, pixel % 20
    picked = sample.xyz[:, (2 * rows + 1) * 40 // 40, (2 * columns + 1) * 60 // 40].T
    assert torch.equal(points, picked) and bool(points.any(1).all())
    assert len(points) == int(sample.valid[1::2, torch.arange(20) * 3 + 1].sum())


def test_holes_do_not_enter_the_cells():
    pixel = torch.tensor([row * 12 + column for row in range(12) for column in range(12) if column != 5])
    values = torch.full((len(pixel), 2), 3.0)
    found = pool_points(values, pixel, 12, (3, 3))
    assert torch.allclose(found.features, torch.full((9, 2), 3.0), atol=1e-5)
    published = pool_points(values, pixel, 12, (3, 3), with_holes=True)
    assert float(published.features.min()) < 2.9
    assert torch.allclose(published.covered, found.covered) and 0.5 < float(found.covered.min()) < 1
    alone = pool_points(values[:1], pixel[:1], 12, (3, 3))
    assert bool((alone.features[4:] == 0).all()) and bool((alone.covered[4:] == 0).all())


def test_fpfh_cells_with_relief():
    sample = make_sample(0)
    branch = PointCells("fpfh", "default", 32)
    cells = branch.describe([sample], [(8, 8)])[0]
    assert cells.features.shape == (64, 36) and cells.covered.shape == (64,) and not branch.weights
    assert sum(width for width, _ in branch.blocks) == 36
    published = PointCells("fpfh", "default", 32, with_holes=True)
    assert published.describe([sample], [(8, 8)])[0].features.shape == (64, 33) and published.blocks == ()
    dented = make_sample(0, "dent")
    change = (branch.describe([dented], [(8, 8)])[0].features - cells.features)[:, 33:].abs().amax(1).view(8, 8)
    row, column = dented.mask.nonzero().float().mean(0).div(8).long().tolist()
    assert float(change[row, column]) >= 0.9 * float(change.max())


def test_a_small_cloud_is_not_blown_up():
    sample = make_sample(0, size=(16, 24))
    cells = PointCells("fpfh", "default", 112).describe([sample], [(4, 4)])[0]
    assert bool(cells.features.isfinite().all())


def test_point_mae_cells_keep_three_layers(tmp_path):
    torch.manual_seed(0)
    net = PointTransformer()
    torch.save({"base_model": {f"MAE_encoder.{name}": value for name, value in net.state_dict().items()}}, tmp_path / "mae.pth")
    branch = PointCells("point_mae", str(tmp_path / "mae.pth"), 24, centers=16, group_size=16)
    cells = branch.describe([make_sample(0)], [(6, 6)])[0]
    assert cells.features.shape == (36, 3 * 384) and branch.weights[0]["licence"] and branch.blocks == ()


def test_scale_gives_each_block_its_spread():
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 1e-4, 0]) + 7
    shift, factor = fit_scale([rows[:90], rows[90:]], ((3, 1.0), (1, 0.1), (1, 0.1)))
    scaled = (rows - shift) * factor
    spread = scaled.std(0, correction=0)
    assert spread[:3].norm().item() == pytest.approx(1, rel=1e-4) and spread[3].item() == pytest.approx(0.1, rel=1e-2)
    assert bool(scaled.isfinite().all()) and torch.allclose(scaled.mean(0)[:4], torch.zeros(4), atol=1e-4)


def test_errors():
    branch = PointCells("fpfh", "default", 32)
    with pytest.raises(DataError, match="cloud without a grid; this method needs an organised one"):
        branch.describe([make_cloud(0)], [(8, 8)])
    sample = make_sample(0)
    with pytest.raises(DataError, match="no valid point"):
        branch.describe([replace(sample, valid=torch.zeros_like(sample.valid))], [(8, 8)])
