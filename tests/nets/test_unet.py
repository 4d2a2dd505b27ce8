from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError
from mm3dad.nets.unet import DualDiscriminator, Reconstructor


@pytest.mark.parametrize(("width", "levels", "side"), [(4, 1, 8), (4, 3, 32), (8, 2, 24)])
def test_pictures_keep_their_size(width, levels, side):
    picture = torch.rand(2, 3, side, side)
    assert Reconstructor(3, width, levels)(picture).shape == picture.shape
    found = DualDiscriminator((6, 2), width, levels)([torch.rand(2, 6, side, side), torch.rand(2, 2, side, side)])
    assert found.shape == (2, side, side) and float(found.min()) > 0 and float(found.max()) < 1


def test_each_stream_reaches_the_result_and_gets_a_gradient():
    net = DualDiscriminator((3, 1), 4, 2).eval()
    one, other = torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 1, 16, 16, requires_grad=True)
    net([one, other]).sum().backward()
    assert bool(one.grad.abs().sum() > 0) and bool(other.grad.abs().sum() > 0)


def test_the_reconstructor_has_no_shortcut():
    """All of a picture passes the narrowest level: far from a pixel nothing of it is left at full resolution."""
    net = Reconstructor(1, 4, 3).eval()
    widths = [module.out_channels for module in net.encoder.modules() if isinstance(module, torch.nn.Conv2d)]
    assert widths == [4, 4, 8, 8, 16, 16, 16, 16]
    assert sum(module.in_channels for module in net.ups.modules() if isinstance(module, torch.nn.Conv2d)) == 16 + 16 + 16 + 8 + 8 + 4


def test_a_reconstructor_learns():
    torch.manual_seed(0)
    net, picture = Reconstructor(1, 8, 2), torch.rand(4, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        loss = (net(picture) - picture).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("sizes", [(0, 2), (4, 0)])
def test_sizes_below_one(sizes):
    with pytest.raises(ConfigError, match="at least 1"):
        Reconstructor(1, *sizes)
