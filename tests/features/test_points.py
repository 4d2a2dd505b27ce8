"""Thinning, grouping and describing the points of a cloud."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import DataError
from mm3dad.features.points import (
    describe_groups,
    encode_groups,
    group_points,
    measure_relief,
    spread_to_points,
    take_fpfh_roots,
    thin_points,
)
from mm3dad.nets.point_transformer import PointTransformer
from mm3dad.ops import fpfh


def make_grid(height, width, share=1.0, seed=0):
    """A wavy surface on a grid, its points valid with a chance of `share`."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height) * 1e-3, torch.arange(width) * 1e-3, indexing="ij")
    xyz = torch.stack([x, y, 0.4 + 0.002 * torch.sin(200 * x) + 1e-5 * torch.rand(height, width, generator=generator)])
    return xyz.float(), torch.rand(height, width, generator=generator) < share


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 500), st.sampled_from([0.1, 0.6, 1.0]), st.integers(0, 3))
def test_thinning_takes_few_enough_valid_points_and_says_where(height, width, most, share, seed):
    xyz, valid = make_grid(height, width, share, seed)
    if not valid.any():
        with pytest.raises(DataError, match="no valid point"):
            thin_points(xyz, valid, most)
        return
    points, pixel = thin_points(xyz, valid, most)
    assert 1 <= len(points) == len(pixel) <= max(most, 1)
    assert bool(valid.flatten()[pixel].all()) and bool((pixel.diff() > 0).all())
    assert torch.equal(points, xyz.flatten(1).T[pixel])
    if int(valid.sum()) <= most:
        assert len(points) == int(valid.sum())


def test_thinning_edges():
    xyz, valid = make_grid(20, 30)
    assert len(thin_points(xyz, valid, 600)[0]) == 600  # exactly `most`: all of them
    assert 400 <= len(thin_points(xyz, valid, 599)[0]) <= 599  # one fewer thins gently
    with pytest.raises(DataError, match="no valid point; check the sensor"):
        thin_points(xyz, torch.zeros_like(valid), 600)
    lonely = torch.zeros_like(valid)
    lonely[17, 23] = True
    for most in (1, 600):
        points, pixel = thin_points(xyz, lonely, most)
        assert pixel.tolist() == [17 * 30 + 23] and torch.equal(points[0], xyz[:, 17, 23])


def test_thinning_keeps_a_regular_grid_and_a_list_of_points():
    xyz, valid = make_grid(40, 40)
    _, pixel = thin_points(xyz, valid, 400)
    rows, columns = (pixel // 40).unique(), (pixel % 40).unique()
    assert len(rows) * len(columns) == len(pixel) == 400
    flat, flat_valid = make_grid(1, 1000)
    _, pixel = thin_points(flat, flat_valid, 250)
    assert torch.equal(pixel, torch.arange(0, 1000, 4))


def test_groups_start_with_their_centre():
    xyz, valid = make_grid(20, 20)
    points, pixel = thin_points(xyz, valid, 400)
    for grow in (True, False):
        groups = group_points(points, pixel, centers=12, size=16, grow=grow)
        assert groups.index.shape == (12, 16) and groups.center.shape == groups.curvature.shape == (12,)
        assert len(groups.center.unique()) == 12
        assert all(int(center) in members for center, members in zip(groups.center, groups.index.tolist(), strict=True))
    assert torch.equal(groups.points, points) and torch.equal(groups.pixel, pixel)


def test_plain_groups_are_the_nearest_points():
    xyz, valid = make_grid(16, 16)
    points, pixel = thin_points(xyz, valid, 256)
    groups = group_points(points, pixel, centers=5, size=9, grow=False)
    nearest = torch.cdist(points[groups.center].double(), points.double()).topk(9, largest=False).indices
    assert [set(row) for row in groups.index.tolist()] == [set(row) for row in nearest.tolist()]


def test_more_centres_than_points_and_fewer_points_than_a_group():
    xyz, valid = make_grid(5, 5)
    points, pixel = thin_points(xyz, valid, 100)
    assert len(group_points(points, pixel, centers=1024, size=8).center) == 25
    with pytest.raises(DataError, match="25 valid points, fewer than one group of 26; lower group_size"):
        group_points(points, pixel, centers=4, size=26)


def test_coincident_points_still_group():
    points = torch.tensor([[0.0, 0.0, 0.4]]).repeat(30, 1)
    groups = group_points(points, torch.arange(30), centers=4, size=8)
    assert bool(describe_groups(groups).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_roots_of_fpfh_are_those_of_its_share_of_200(dtype):
    points = torch.rand(120, 3, generator=torch.Generator().manual_seed(0))
    points[:, 2] = 2 + 0.1 * points[:, 0]  # a plane leaves most bins empty
    points = points.to(dtype)
    roots, wanted = take_fpfh_roots(points, neighbors=20), (fpfh(points, neighbors=20) / 200).double().sqrt()
    assert roots.dtype == dtype and bool((roots == 0).any())
    torch.testing.assert_close(roots.double(), wanted, atol=0, rtol=2 * torch.finfo(dtype).eps)


def test_descriptors_do_not_depend_on_the_pose():
    xyz, valid = make_grid(20, 20)
    points, pixel = thin_points(xyz, valid, 400)
    groups = group_points(points, pixel, centers=10, size=16)
    features = describe_groups(groups, neighbors=20)
    assert features.shape == (10, 66) and bool(features.isfinite().all())
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turn = turn * torch.linalg.det(turn).sign()
    moved = type(groups)((points - points.mean(0)) @ turn.T, pixel, groups.center, groups.index, groups.curvature)
    centred = type(groups)(points - points.mean(0), pixel, groups.center, groups.index, groups.curvature)
    difference = (describe_groups(moved, neighbors=20) - describe_groups(centred, neighbors=20)).abs()
    assert float(difference.median()) < 0.02


def test_a_bump_changes_the_groups_on_it_most():
    xyz, valid = make_grid(30, 30)
    bumped = xyz.clone()
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(30.0), indexing="ij")
    bumped[2] -= 0.004 * torch.exp(-((y - 15) ** 2 + (x - 15) ** 2) / 8)
    pair = []
    for cloud in (xyz, bumped):
        points, pixel = thin_points(cloud, valid, 900)
        center = torch.arange(0, 900, 31)
        near = torch.cdist(xyz.flatten(1).T[center], xyz.flatten(1).T).topk(9, largest=False).indices
        pair.append(describe_groups(type(group_points(points, pixel, 1, 8))(points, pixel, center, near, torch.zeros(30)), neighbors=20))
    change = (pair[0] - pair[1]).norm(dim=1)
    assert abs(int(change.argmax()) - 15) <= 4
    assert float(change.max()) > 5 * float(change[:6].max())


def test_point_mae_tokens_ignore_place_and_size():
    torch.manual_seed(0)
    net = PointTransformer(depth=3, dim=24, heads=3).requires_grad_(False)
    xyz, valid = make_grid(16, 16)
    points, pixel = thin_points(xyz, valid, 256)
    groups = group_points(points, pixel, centers=6, size=16)
    tokens = encode_groups(groups, net, layers=(0, 2))
    assert tokens.shape == (6, 48)
    moved = type(groups)(points * 3 + 1, pixel, groups.center, groups.index, groups.curvature)
    torch.testing.assert_close(encode_groups(moved, net, layers=(0, 2)), tokens, rtol=1e-3, atol=1e-3)
    lonely = type(groups)(torch.ones(1, 3), pixel[:1], torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64), pixel[:1])
    assert bool(encode_groups(lonely, net, layers=(2,)).isfinite().all())


@pytest.mark.parametrize("centers", [1, 2, 8])
def test_spreading_values_to_points(centers):
    xyz, valid = make_grid(12, 12)
    points, pixel = thin_points(xyz, valid, 144)
    groups = group_points(points, pixel, centers, size=8)
    values = torch.arange(1.0, centers + 1)[:, None]
    spread = spread_to_points(values, points[groups.center], points)
    assert spread.shape == (144, 1)
    assert float(spread.min()) >= 1 - 1e-5 and float(spread.max()) <= centers + 1e-5
    torch.testing.assert_close(spread[groups.center], values, rtol=1e-2, atol=0)  # the published weights are 1 / (d + 1e-8)


def test_relief_is_zero_on_a_plane_and_the_depth_of_a_dent():
    y, x = torch.meshgrid(torch.arange(20) * 1e-3, torch.arange(20) * 1e-3, indexing="ij")
    plane = torch.stack([x, y, 0.4 + 0.3 * x], dim=2).view(-1, 3)
    assert float(measure_relief(plane).abs().max()) < 1e-7
    dented = plane.view(20, 20, 3).clone()
    dented[8:12, 8:12, 2] += 0.002  # away from the sensor
    whole = measure_relief(dented.view(-1, 3))[:, -1].view(20, 20)
    expected = -0.002 / (1 + 0.3**2) ** 0.5
    torch.testing.assert_close(whole[9:11, 9:11], torch.full((2, 2), expected), rtol=0.02, atol=0)
    assert float(whole[:6].abs().max()) < 0.05 * abs(expected)
    nearby = measure_relief(dented.view(-1, 3))[:, 0].view(20, 20)
    assert float(nearby[9, 9]) < 0 < float(nearby[9, 13])


def test_a_dent_over_a_third_of_the_view_does_not_tilt_the_dominant_plane():
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32) * 1e-3, torch.arange(32) * 1e-3, indexing="ij")
    rough = 0.4 + 0.2 * y + 1e-4 * torch.randn(32, 32, generator=generator)
    dented = rough.clone()
    dented[20:] += 0.003  # a floor that leaves the view at the lower border
    height = measure_relief(torch.stack([x, y, dented], dim=2).view(-1, 3))[:, -1].view(32, 32)
    expected = -0.003 / (1 + 0.2**2) ** 0.5
    assert float(height[:19].abs().mean()) < 0.05 * abs(expected)
    assert abs(float(height[22:].mean()) - expected) < 0.05 * abs(expected)


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_relief_of_few_or_coincident_centres_is_finite(count):
    for centers in (torch.full((count, 3), 0.3), torch.rand(count, 3, generator=torch.Generator().manual_seed(0))):
        relief = measure_relief(centers)
        assert relief.shape == (count, 3) and relief.dtype == torch.float32 and bool(relief.isfinite().all())
