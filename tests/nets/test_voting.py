from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from mm3dad.nets.voting import VotingNet, join_clouds, mined_hinge_loss


@pytest.fixture
def net():
    torch.manual_seed(0)
    return VotingNet(3, width=4, reach=5)


def make_cloud(count, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(side**3, generator=generator)[:count].sort().values
    cells = torch.stack([flat // side**2, flat // side % side, flat % side], dim=1)
    return cells, torch.randn(count, 3, generator=generator)


def test_equals_the_dense_network_whose_empty_space_stays_empty(net):
    cells, values = make_cloud(60)
    net.standardise(values)
    read = net(cells, values)
    room = 6
    volume = torch.zeros(1, 3, *(8 + 2 * room,) * 3)
    place = tuple((cells + room).T)
    volume[0][:, *place] = (values * net.scale).T
    features = []
    for layer in net.hidden:
        volume = F.conv3d(volume, layer.weight, layer.bias, padding=1).relu()
        features.append(volume[0][:, *place].T)
    scores = F.conv3d(volume, net.head.weight, net.head.bias, padding=2)[0, 0][place]
    torch.testing.assert_close(read.features, torch.cat(features, dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(read.scores, scores, atol=1e-5, rtol=1e-4)


def test_biases_are_never_above_zero_and_the_activity_is_that_of_all_cells(net):
    cells, values = make_cloud(60)
    with torch.no_grad():
        for layer in (*net.hidden, net.head):
            layer.depth.uniform_(-1, 1)
    assert all(bool((layer.bias <= 0).all()) for layer in (*net.hidden, net.head))
    loose = net(cells, values)
    loose.activity.backward()
    assert all(bool(layer.weight.grad.any()) for layer in net.hidden)
    with torch.no_grad():
        net.hidden[0].depth.fill_(100.0)
    dead = net(cells, values)
    assert float(loose.activity.detach()) > 0 == float(dead.activity.detach()) and not dead.features.any()
    assert torch.equal(dead.scores, net.head.bias.expand(60)) and dead.operations < loose.operations


def test_operations_follow_the_occupied_cells(net):
    cells, values = make_cloud(60)
    counts = [net(cells * spread, values).operations for spread in (100, 1000)]
    assert counts[0] == counts[1]  # the volume of the grid does not matter
    assert net(cells[:0], values[:0]).scores.shape == (0,)


def test_joined_clouds_do_not_touch(net):
    clouds = [make_cloud(40, seed=seed) for seed in range(3)]
    joined = join_clouds([cells for cells, _ in clouds], net.reach)
    assert len(joined.unique(dim=0)) == 120
    together = net(joined, torch.cat([values for _, values in clouds]))
    alone = [net(cells, values) for cells, values in clouds]
    torch.testing.assert_close(together.scores, torch.cat([read.scores for read in alone]))
    torch.testing.assert_close(together.features, torch.cat([read.features for read in alone]))


def test_mined_hinge_loss():
    scores = torch.tensor([2.0, 0.0, -3.0, 1.0, 0.5, -0.9])
    target = torch.tensor([1, 1, 0, 0, 0, -1])
    assert float(mined_hinge_loss(scores, target, ratio=1.0)) == pytest.approx((0 + 1) / 2 + (2 + 1.5) / 2)
    assert float(mined_hinge_loss(scores, target, ratio=0.0)) == pytest.approx(0.5 + 2.0)
    assert float(mined_hinge_loss(scores[:2], target[:2])) == pytest.approx(0.5)
    assert float(mined_hinge_loss(scores[:0], target[:0])) == 0
