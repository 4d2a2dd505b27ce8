"""Crossmodal mappings, the code of places, the mentor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mm3dad.nets.mapping import CrossMapping, MentorFusion, code_places, make_mlp, mapping_loss


def make_pairs(count, seed=0):
    """Both modalities see the same hidden cause."""
    generator = torch.Generator().manual_seed(seed)
    cause = torch.randn(count, 4, generator=generator)
    maps = torch.Generator().manual_seed(99)
    return cause @ torch.randn(4, 10, generator=maps), cause @ torch.randn(4, 6, generator=maps)


def fit(net, loss, steps=150):
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for step in range(steps):
        value = loss(*make_pairs(64, step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def test_mlp_has_a_gelu_between_layers_only():
    kinds = [type(layer) for layer in make_mlp([3, 5, 5, 2])]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert [type(layer) for layer in make_mlp([3, 2])] == [nn.Linear]


@pytest.mark.parametrize("layers", [2, 3, 7])
def test_widths(layers):
    net = CrossMapping(10, 6, layers, guide=4)
    linear = [layer for layer in net.to_xyz if isinstance(layer, nn.Linear)]
    assert len(linear) == layers and linear[0].in_features == 14 and linear[0].out_features == 10 and linear[-1].out_features == 6
    assert CrossMapping(10, 6, hidden=40).to_rgb[0].out_features == 40 and CrossMapping(10, 6, hidden=4).to_rgb[0].out_features == 8
    rgb, xyz = net(torch.randn(5, 10), torch.randn(5, 6), torch.randn(5, 4))
    assert rgb.shape == (5, 10) and xyz.shape == (5, 6)


def test_loss_by_hand():
    a, b = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    assert float(mapping_loss(a, b)) == pytest.approx(1 - (1 - math.sqrt(0.5)) / 2)


def test_mapping_learns_what_the_modalities_share():
    torch.manual_seed(0)
    net = CrossMapping(10, 6)
    rgb, xyz = make_pairs(50, 10**6)
    with torch.no_grad():
        before = mapping_loss(net(rgb, xyz)[1], xyz)
    fit(net, lambda a, b: sum(mapping_loss(one, other) for one, other in zip(net(a, b), (a, b), strict=True)))
    with torch.no_grad():
        assert mapping_loss(net(rgb, xyz)[1], xyz) < 0.2 * before
        # A pair of different places denies itself.
        assert mapping_loss(net(rgb, xyz)[1], xyz.roll(1, 0)) > 5 * mapping_loss(net(rgb, xyz)[1], xyz)


def test_mentor_finds_pairs_and_speaks_for_both():
    torch.manual_seed(0)
    net = MentorFusion(10, 6, mentor=4, shared=32)
    losses = fit(net, lambda a, b: sum(net.loss(a, b).values()))
    assert losses[-1] < 0.5 * losses[0]
    rgb, xyz = make_pairs(50, 10**6)
    with torch.no_grad():
        a, b = (nn.functional.normalize(part, dim=1) for part in net.embed(rgb, xyz))
        place = torch.arange(50)
        assert float(((a @ b.T).argmax(1) == place).float().mean()) > 0.5
        said = nn.functional.normalize(net.head(net(rgb, xyz)), dim=1)
        assert float(((said @ (a + b).T).argmax(1) == place).float().mean()) > 0.5
    assert net(rgb, xyz).shape == (50, 4)


def test_every_part_of_the_mentor_learns():
    net = MentorFusion(10, 6, mentor=4, shared=8)
    sum(net.loss(*make_pairs(12)).values()).backward()
    assert all(float(value.grad.abs().sum()) > 0 for value in net.parameters())


def test_code_of_places():
    code = code_places((3, 2), 2)
    assert code.shape == (6, 8)
    place = torch.tensor([[r, c] for r in (-1.0, 0.0, 1.0) for c in (-1.0, 1.0)])
    for band, start in ((1, 0), (2, 4)):
        torch.testing.assert_close(code[:, start : start + 2], torch.sin(place * math.pi * band / 2))
        torch.testing.assert_close(code[:, start + 2 : start + 4], torch.cos(place * math.pi * band / 2))
    assert len({tuple(row) for row in code_places((9, 7), 4).tolist()}) == 63
    assert code_places((5, 4), 0).shape == (20, 0) and code_places((1, 1), 3).shape == (1, 12)
