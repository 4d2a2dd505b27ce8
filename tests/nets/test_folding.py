"""Folding batch normalisation changes no value, or does not happen."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mm3dad.nets.folding import fold_batch_norms


def make_norm(channels):
    norm = nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(channels)
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.5, 2, generator=generator)
    return norm


class Residual(nn.Module):
    """Parts in the order of the pass, one norm after each convolution, the second with a branch around it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.act = nn.Conv2d(3, 8, 3, padding=1, bias=False), make_norm(8), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), make_norm(8)

    def forward(self, image):
        first = self.act(self.bn1(self.conv1(image)))
        return first + self.bn2(self.conv2(first))


class Preactivated(nn.Module):
    """The norm is held after the convolution and works before it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), make_norm(3)

    def forward(self, image):
        return self.conv(self.norm(image))


class FixedSize(Residual):
    def forward(self, image):
        assert image.shape[-1] == 224, "only 224 pixels"
        return super().forward(image)


def frozen(net):
    return net.eval().requires_grad_(False)


def test_values_stay_and_norms_go():
    net = frozen(Residual())
    folded = fold_batch_norms(net)
    image = torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(folded(image), net(image), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in net.modules()), "the network that was given is not touched"


@pytest.mark.parametrize("make", [Preactivated, FixedSize, lambda: nn.Conv2d(3, 4, 3)])
def test_others_are_returned_as_they_came(make):
    net = frozen(make())
    assert fold_batch_norms(net) is net


@pytest.mark.parametrize("architecture", ["resnet10t", "test_efficientnet", "test_convnext", "regnetx_002", "mobilenetv3_small_050"])
def test_architectures_of_timm(architecture):
    torch.manual_seed(0)
    net = frozen(timm.create_model(architecture, pretrained=False))
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    layers, folded = (one.forward_intermediates(image, intermediates_only=True) for one in (net, fold_batch_norms(net)))
    for wanted, found in zip(layers, folded, strict=True):
        assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
