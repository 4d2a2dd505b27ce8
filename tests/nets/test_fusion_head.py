"""The fusion network of M3DM."""

from __future__ import annotations

import pytest
import torch

from mm3dad.nets.fusion_head import FeatureFusion, train_fusion


def make_net(seed=0, xyz=6, rgb=10):
    torch.manual_seed(seed)
    return FeatureFusion(xyz, rgb, head=8)


def make_pairs(count, seed=0):
    """Both modalities see the same hidden cause."""
    generator = torch.Generator().manual_seed(seed)
    cause = torch.randn(count, 4, generator=generator)
    maps = torch.Generator().manual_seed(99)
    return cause @ torch.randn(4, 6, generator=maps), cause @ torch.randn(4, 10, generator=maps)


def test_fused_features_lie_side_by_side():
    net = make_net()
    xyz, rgb = make_pairs(5)
    fused = net(xyz, rgb)
    assert fused.shape == (5, 16)
    assert torch.equal(fused[:, :6], net.xyz(xyz)) and torch.equal(fused[:, 6:], net.rgb(rgb))
    torch.testing.assert_close(net(xyz * 3 - 1, rgb), fused, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_loss_by_hand(temperature):
    net = make_net()
    xyz, rgb = make_pairs(7)
    query, key = net.rgb_head(net.rgb(rgb)), net.xyz_head(net.xyz(xyz))
    total = 0.0
    for i in range(7):
        row = torch.stack([torch.cosine_similarity(query[i], key[j], dim=0) for j in range(7)]) / temperature
        total += float((row.logsumexp(0) - row[i]).detach())
    assert float(net.loss(xyz, rgb, temperature)) == pytest.approx(2 * temperature * total / 7, rel=1e-5)
    assert float(net.loss(xyz[:1], rgb[:1])) == pytest.approx(0, abs=1e-6)


def matched(net, xyz, rgb):
    with torch.no_grad():
        query, key = net.rgb_head(net.rgb(rgb)), net.xyz_head(net.xyz(xyz))
        query, key = (torch.nn.functional.normalize(part, dim=1) for part in (query, key))
    return float(((query @ key.T).argmax(1) == torch.arange(len(xyz))).float().mean())


def train(shift, steps=150):
    net = make_net()

    def draw(generator):
        xyz, rgb = make_pairs(64, int(torch.randint(10**6, (), generator=generator)))
        return xyz, rgb.roll(shift, 0)

    return net, train_fusion(net, draw, steps, temperature=0.2)


def test_training_finds_what_the_modalities_share_and_repeats():
    net, losses = train(shift=0)
    assert losses[-1] < 0.7 * losses[0] and not net.training
    assert matched(net, *make_pairs(40, seed=-1 % 10**6)) > 4 * matched(make_net(), *make_pairs(40, seed=-1 % 10**6))
    again, repeated = train(shift=0)
    assert repeated == losses
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_pairs_of_different_places_teach_nothing():
    # Why the published index, which pairs almost every point patch with an image patch elsewhere, is not kept.
    aligned, astray = (matched(train(shift)[0], *make_pairs(40, seed=7)) for shift in (0, 31))
    assert aligned > 3 * max(astray, 1 / 40)


def test_rate_rises_and_falls():
    net = make_net()
    before = [value.clone() for value in net.parameters()]
    train_fusion(net, lambda generator: make_pairs(8), 1)
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
