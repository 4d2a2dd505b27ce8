"""pointnet2_ops: native = reference = brute force, gradients, and a network written for the well-known library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pointnet2_ops import _library, _reference, pointnet2_utils
from pointnet2_ops.pointnet2_utils import (
    GroupAll,
    QueryAndGroup,
    ball_query,
    furthest_point_sample,
    gather_operation,
    grouping_operation,
    three_interpolate,
    three_nn,
)
from torch import nn

from tests.ops.clouds import KINDS, make_cloud

SIZES = [(1, 1), (2, 5), (40, 17), (700, 300)]


@pytest.fixture(params=["reference", "native"], scope="module", autouse=True)
def ops_path(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MM3DAD_OPS", request.param)
        yield request.param


def random(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clouds(kind, number, batch=2, seed=0):
    return torch.stack([make_cloud(kind, number, seed + item) for item in range(batch)])


def squared_distances(a, b):
    return [[sum((x - y) * (x - y) for x, y in zip(p, q, strict=True)) for q in b.tolist()] for p in a.tolist()]


def pick_columns(features, idx):
    return torch.stack([row[:, column.long()] for row, column in zip(features, idx, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "groups"), SIZES)
def test_three_nn_equals_brute_force(kind, number, groups):
    unknown, known = clouds(kind, number), clouds(kind, groups, seed=5)
    unknown[:, 0] = known[:, 0]
    distance, index = three_nn(unknown, known)
    assert (distance.shape, index.shape, index.dtype) == ((2, number, 3), (2, number, 3), torch.int32)
    few = slice(0, 12)
    near = min(3, groups)
    for b in range(2):
        for row, found, values in zip(squared_distances(unknown[b, few], known[b]), index[b], distance[b], strict=False):
            order = sorted(range(groups), key=row.__getitem__)[:near]
            assert found[:near].tolist() == order
            torch.testing.assert_close(values[:near], torch.tensor([row[i] for i in order], dtype=torch.float64).sqrt())
            assert bool((values[near:] == torch.inf).all())
            assert bool((found[near:] == 0).all())
    squared, rows = _reference.find_three(unknown, known)
    assert torch.equal(index, rows.int())
    assert torch.equal(distance, squared.sqrt())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "groups"), SIZES)
def test_ball_query_equals_brute_force(kind, number, groups):
    xyz, centers = clouds(kind, number), clouds(kind, groups, seed=5)
    extent = float((xyz.amax(1) - xyz.amin(1)).max()) or 1.0
    for radius in (0.05 * extent, 0.3 * extent, 3 * extent, 1.0):
        for nsample in (1, 16):
            found = ball_query(radius, nsample, xyz, centers)
            assert (found.shape, found.dtype) == ((2, groups, nsample), torch.int32)
            assert torch.equal(found, _reference.query_balls(centers, xyz, radius, nsample).int())
            for row, list_ in zip(squared_distances(centers[0, :8], xyz[0]), found[0].tolist(), strict=False):
                inside = [i for i, value in enumerate(row) if value < radius * radius][:nsample]
                assert list_ == inside + (inside or [0])[:1] * (nsample - len(inside))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 17, 300])
def test_furthest_points_equal_the_reference(kind, number):
    xyz = clouds(kind, number, batch=3)
    found = furthest_point_sample(xyz, min(number, 60))
    assert found.dtype == torch.int32
    assert torch.equal(found, _reference.sample_farthest(xyz, min(number, 60)).int())
    assert bool((found[:, 0] == 0).all())


def test_points_near_the_origin_are_picked():
    xyz = torch.tensor([[[3.0, 0, 0], [1e-3, 0, 0], [-1e-3, 0, 0], [2.0, 0, 0]]])
    assert furthest_point_sample(xyz, 4).tolist() == [[0, 2, 3, 1]]


def test_ties_go_to_the_lowest_index():
    xyz = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]])
    assert furthest_point_sample(xyz, 3).tolist() == [[0, 1, 2]]
    assert three_nn(xyz[:, :1], xyz[:, 1:])[1].tolist() == [[[0, 1, 2]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_gathering_and_interpolating_equal_plain_indexing(dtype):
    features = random(2, 5, 40).to(dtype)
    idx = torch.randint(0, 40, (2, 9, 7), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    assert torch.equal(gather_operation(features, idx[:, :, 0]), pick_columns(features, idx[:, :, 0]))
    assert torch.equal(grouping_operation(features, idx), pick_columns(features, idx.flatten(1)).view(2, 5, 9, 7))
    weight = random(2, 9, 3).to(dtype)
    wanted = (pick_columns(features, idx[:, :, :3].flatten(1)).view(2, 5, 9, 3) * weight[:, None]).sum(3)
    torch.testing.assert_close(three_interpolate(features, idx[:, :, :3].contiguous(), weight), wanted)
    # Slices and other integers come from users' models as they are.
    turned = features.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(gather_operation(turned, idx[:, :, 0].long()), gather_operation(features, idx[:, :, 0]))


def test_gradients():
    idx = torch.randint(0, 6, (2, 5, 3), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    features = random(2, 3, 6).requires_grad_()
    weight = random(2, 5, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: gather_operation(rows, idx[:, :, 0]), (features,))
    assert torch.autograd.gradcheck(lambda rows: grouping_operation(rows, idx), (features,))
    assert torch.autograd.gradcheck(lambda rows, shares: three_interpolate(rows, idx, shares), (features, weight))
    xyz = random(2, 12, 3).requires_grad_()
    group = QueryAndGroup(0.5, 4)
    assert torch.autograd.gradcheck(lambda points, rows: group(points, points[:, :5], rows), (xyz, random(2, 3, 12).requires_grad_()))


def test_groups():
    xyz, features = random(2, 30, 3, dtype=torch.float32), random(2, 4, 30, dtype=torch.float32)
    centers = xyz[:, :6]
    idx = ball_query(0.4, 8, xyz, centers)
    grouped = QueryAndGroup(0.4, 8)(xyz, centers, features)
    assert grouped.shape == (2, 7, 6, 8)
    place = grouping_operation(xyz.transpose(1, 2), idx)
    torch.testing.assert_close(grouped[:, :3] + centers.transpose(1, 2)[..., None], place)
    assert torch.equal(grouped[:, 3:], grouping_operation(features, idx))
    assert torch.equal(QueryAndGroup(0.4, 8, use_xyz=False)(xyz, centers, features), grouped[:, 3:])
    assert torch.equal(QueryAndGroup(0.4, 8)(xyz, centers), grouped[:, :3])
    whole = GroupAll()(xyz, None, features)
    assert torch.equal(whole, torch.cat([xyz.transpose(1, 2), features], 1)[:, :, None])
    assert torch.equal(GroupAll(use_xyz=False)(xyz, None, features), features[:, :, None])
    with pytest.raises(ValueError, match="groups would be empty"):
        GroupAll(use_xyz=False)(xyz, None)


class Network(nn.Module):
    """Two set abstractions and one feature propagation, as PointNet++ networks call the library."""

    def __init__(self) -> None:
        super().__init__()
        self.grouper, self.all = pointnet2_utils.QueryAndGroup(0.4, 8, use_xyz=True), pointnet2_utils.GroupAll()
        self.first, self.second = nn.Sequential(nn.Conv2d(6, 16, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(19, 24, 1), nn.ReLU())
        self.head = nn.Conv1d(40, 5, 1)

    def forward(self, xyz):
        picks = pointnet2_utils.furthest_point_sample(xyz, 32)
        flipped = xyz.transpose(1, 2).contiguous()
        centers = pointnet2_utils.gather_operation(flipped, picks).transpose(1, 2).contiguous()
        local = self.first(self.grouper(xyz, centers, flipped)).amax(-1)
        whole = self.second(self.all(centers, None, local)).amax(-1)
        distance, idx = pointnet2_utils.three_nn(xyz, centers)
        closeness = 1.0 / (distance + 1e-8)
        spread = pointnet2_utils.three_interpolate(local, idx, closeness / closeness.sum(2, keepdim=True))
        return self.head(torch.cat([spread, whole.expand(-1, -1, xyz.shape[1])], 1))


def test_a_pointnet_learns_and_both_paths_agree(monkeypatch):
    torch.manual_seed(0)
    network, xyz = Network(), random(4, 200, 3, dtype=torch.float32)
    label = (xyz[..., 0] * 5).long().clamp(max=4)
    losses, grads = [], []
    for path in ("reference", "native"):
        monkeypatch.setenv("MM3DAD_OPS", path)
        loss = nn.functional.cross_entropy(network(xyz), label)
        grads.append(torch.autograd.grad(loss, list(network.parameters())))
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(xyz), label)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * losses[0].item()


def test_threads_change_no_bit():
    xyz, centers = clouds("surface", 2000, batch=3).float(), clouds("surface", 300, batch=3, seed=9).float()
    features = random(3, 20, 2000, dtype=torch.float32)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rows = features.clone().requires_grad_()
            idx = ball_query(0.1, 16, xyz, centers)
            distance, near = three_nn(centers, xyz)
            out = grouping_operation(rows, idx).sum(3) + three_interpolate(rows, near, distance)
            results.append((furthest_point_sample(xyz, 99), idx, near, out, *torch.autograd.grad(out.square().sum(), rows)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_errors():
    xyz = random(2, 4, 3)
    with pytest.raises(ValueError, match=r"xyz must be floating \(B, N, 3\), got torch.float64 \(4, 3\)"):
        furthest_point_sample(xyz[0], 2)
    with pytest.raises(ValueError, match="npoint must be 1 to 4"):
        furthest_point_sample(xyz, 5)
    with pytest.raises(ValueError, match=r"known must be floating \(2, N, 3\)"):
        three_nn(xyz, xyz[:1])
    with pytest.raises(ValueError, match="known must have at least one point"):
        three_nn(xyz, xyz[:, :0])
    with pytest.raises(ValueError, match="nsample of at least 1"):
        ball_query(0.1, 0, xyz, xyz)
    with pytest.raises(ValueError, match="idx must hold integers in 2 dimensions"):
        gather_operation(xyz, xyz[:, :, 0])
    with pytest.raises(ValueError, match="idx and weight must both be"):
        three_interpolate(xyz, torch.zeros(2, 5, 2, dtype=torch.int32), xyz)
    for column in (-1, 4):
        with pytest.raises((RuntimeError, IndexError), match=r"index|out of range"):
            gather_operation(xyz.transpose(1, 2), torch.full((2, 1), column))


def test_choice_of_code(monkeypatch):
    monkeypatch.setenv("MM3DAD_OPS", "fast")
    with pytest.raises(ValueError, match="MM3DAD_OPS must be auto, native or reference"):
        furthest_point_sample(random(1, 4, 3), 2)
    monkeypatch.setenv("MM3DAD_OPS", "native")
    monkeypatch.setattr(_library, "load", lambda device: False)
    with pytest.raises(RuntimeError, match="no kernels for cpu are built"):
        furthest_point_sample(random(1, 4, 3), 2)
    monkeypatch.setenv("MM3DAD_OPS", "auto")
    assert furthest_point_sample(random(1, 4, 3), 1).tolist() == [[0]]


@pytest.mark.parametrize("first", ["pointnet2_ops.pointnet2_utils", "mm3dad.ops"])
def test_both_packages_share_the_kernels_in_either_order(first, repository: Path):
    code = f"""
import importlib, torch
importlib.import_module({first!r})
from pointnet2_ops.pointnet2_utils import furthest_point_sample
from mm3dad.ops import farthest_point_sample
xyz = torch.rand(1, 50, 3)
calls = [lambda: furthest_point_sample(xyz, 9)[0].long(), lambda: farthest_point_sample(xyz[0], 9)]
one, two = [call() for call in (calls if {first.startswith("point")} else calls[::-1])]
assert torch.equal(one, two)
"""
    environment = {"PYTHONPATH": f"{repository}:{repository / 'extensions'}", "MM3DAD_OPS": "native", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_gpu_equals_cpu():
    xyz, centers = clouds("random", 500).float(), clouds("random", 64, seed=5).float()
    features = random(2, 7, 500, dtype=torch.float32)
    assert torch.equal(furthest_point_sample(xyz.cuda(), 100).cpu(), furthest_point_sample(xyz, 100))
    assert torch.equal(ball_query(0.2, 16, xyz.cuda(), centers.cuda()).cpu(), ball_query(0.2, 16, xyz, centers))
    distance, near = three_nn(centers, xyz)
    found = three_nn(centers.cuda(), xyz.cuda())
    torch.testing.assert_close(found[0].cpu(), distance)
    assert torch.equal(found[1].cpu(), near)
    one, two = features.clone().requires_grad_(), features.cuda().requires_grad_()
    outputs = [three_interpolate(rows, near.to(rows.device), distance.to(rows.device)) for rows in (one, two)]
    torch.testing.assert_close(outputs[1].cpu(), outputs[0])
    for out in outputs:
        out.square().sum().backward()
    torch.testing.assert_close(two.grad.cpu(), one.grad)
