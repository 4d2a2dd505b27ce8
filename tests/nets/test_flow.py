"""Laws of the flow: it is invertible and its log-determinant is that of its Jacobian; what it learns; bad input."""

from __future__ import annotations

import sys

import pytest
import torch

from mm3dad.errors import ConfigError, MissingPackageError
from mm3dad.nets.flow import ConditionalFlow, boundary_losses, encode_position, log_likelihoods


def make_flow(channels, condition=0, blocks=4):
    torch.manual_seed(channels)
    flow = ConditionalFlow(channels, condition, blocks).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return flow.eval()


@pytest.mark.parametrize(("channels", "condition"), [(2, 0), (3, 0), (5, 4), (8, 2)])
@torch.no_grad()
def test_inverse_returns_to_the_start(channels, condition):
    flow = make_flow(channels, condition)
    values = torch.randn(20, channels, dtype=torch.float64)
    given = torch.randn(20, condition, dtype=torch.float64) if condition else None
    latents, gains = flow(values, given)
    assert latents.shape == values.shape and gains.shape == (20,) and not torch.allclose(latents, values)
    torch.testing.assert_close(flow.inverse(latents, given), values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("channels", "condition"), [(2, 0), (5, 4)])
def test_log_determinant_is_that_of_the_jacobian(channels, condition):
    flow = make_flow(channels, condition)
    given = torch.randn(1, condition, dtype=torch.float64) if condition else None
    for _ in range(3):
        value = torch.randn(1, channels, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda one: flow(one, given)[0][0], value)[:, 0]
        torch.testing.assert_close(flow(value, given)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


def test_starts_as_a_near_isometry():
    flow = ConditionalFlow(6, blocks=3)
    values = torch.randn(50, 6)
    with torch.no_grad():
        latents, gains = flow(values)
    assert float(gains.abs().max()) < 3 and float((latents.norm(dim=1) / values.norm(dim=1) - 1).abs().max()) < 0.8


def test_likelihood_integrates_to_one_and_rises_with_training():
    torch.manual_seed(0)
    flow = ConditionalFlow(2, blocks=4)
    axis = torch.linspace(-8, 8, 161)
    grid = torch.cartesian_prod(axis, axis)
    density = (2 * log_likelihoods(*flow(grid))[0]).exp()
    assert float(density.sum() * 0.1**2) == pytest.approx(1, abs=0.02)
    data = torch.randn(256, 2) * torch.tensor([0.1, 1.0]) + 2
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
    start = float(log_likelihoods(*flow(data))[0].mean().detach())
    for _ in range(60):
        loss = -log_likelihoods(*flow(data))[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert -float(loss.detach()) > start + 0.5


def test_boundary_without_offenders_is_zero():
    likelihood = torch.tensor([0.0, -5.0], requires_grad=True)
    losses = boundary_losses(likelihood, torch.tensor([True, False]), -1.0)
    assert [float(one.detach()) for one in losses] == [0.0, 0.0]
    sum(losses).backward()


def test_bad_input(monkeypatch):
    with pytest.raises(ConfigError, match="at least 2 channels, got 1"):
        ConditionalFlow(1)
    for channels in (0, 6):
        with pytest.raises(ConfigError, match=f"multiple of 4 channels, got {channels}"):
            encode_position(channels, (2, 2))
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mm3dad\[flow\]'"):
        ConditionalFlow(4)
