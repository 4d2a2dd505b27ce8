"""The fusion network of M3DM."""

from __future__ import annotations

import pytest
import torch

from mm3dad.nets.fusion_head import FeatureFusion, fusion_task
from mm3dad.nets.training import TrainingSettings
from mm3dad.nets.training import train as run_task


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

    return net, [row["loss"] for row in run_task(fusion_task(net, draw, steps, temperature=0.2), TrainingSettings()).rows]


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
    run_task(fusion_task(net, lambda generator: make_pairs(8), 1), TrainingSettings())
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    task = fusion_task(net, lambda generator: make_pairs(8), 20)
    rates = [task.rate(step) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[2:] == sorted(rates[2:], reverse=True) and 0 < rates[-1] < 0.01


@pytest.mark.parametrize("steps", [1, 7, 10, 300, 301])
def test_steps_are_shared_out_over_the_epochs(steps):
    task = fusion_task(make_net(), lambda generator: make_pairs(2), steps)
    counts = [len(list(task.batches(epoch, torch.Generator()))) for epoch in range(task.epochs)]
    assert sum(counts) == steps and min(counts) > 0 and len(counts) <= 10
