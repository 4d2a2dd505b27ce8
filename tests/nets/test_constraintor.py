"""The constraintor's losses: what they pull where, and gradients at their corners."""

from __future__ import annotations

import torch

from mm3dad.nets.constraintor import Codebook, measure_radius, occ_loss, plain_occ_loss, shell_occ_loss
from mm3dad.nets.residual_flow import ResidualFlow


def descend(loss, rows, target, is_normal, steps=300):
    rows = rows.clone().requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(rows, target, is_normal).backward()
        optimizer.step()
    return rows.detach()


def test_normal_rows_are_pulled_to_a_shell_or_the_origin_and_anomalous_ones_stay():
    torch.manual_seed(0)
    rows, is_normal = torch.rand(20, 4) * 3 + 1, torch.arange(20) < 12
    shell = descend(occ_loss, rows, rows, is_normal)
    # Radius 0.4 at most, as the anomalous rows lie far beyond it.
    assert float((measure_radius(shell[is_normal]) - 0.4).abs().max()) < 0.08
    assert float((shell - rows)[~is_normal].abs().max()) < 0.1
    plain = descend(plain_occ_loss, rows, rows, is_normal)
    assert float(measure_radius(plain[is_normal]).max()) < 0.1


def test_gradient_at_zero_is_finite():
    rows = torch.zeros(4, 3, requires_grad=True)
    for loss in (occ_loss, plain_occ_loss, shell_occ_loss):
        (gradient,) = torch.autograd.grad(loss(rows, torch.zeros(4, 3), torch.tensor([True, True, False, False])), rows)
        assert bool(gradient.isfinite().all())


def test_codes_move_to_the_residuals():
    torch.manual_seed(0)
    book, residuals = Codebook(3, 8), torch.rand(50, 3) + 1
    start = float(book.loss(residuals).detach())
    optimizer = torch.optim.Adam(book.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        book.loss(residuals).backward()
        optimizer.step()
    assert float(book.loss(residuals).detach()) < 0.2 * start


def test_each_loss_reaches_its_own_part_alone():
    torch.manual_seed(0)
    net = ResidualFlow([4, 6], codes=5, blocks=2, position=4, seed=0)
    residuals = [torch.rand(2, width, 3, 3) for width in (4, 6)]
    is_normal = torch.rand(2, 3, 3) > 0.4
    parts = {"codes": net.codebooks, "constraint": net.constraintors, "flow": net.flows}
    for name in parts:
        net.zero_grad(set_to_none=True)
        net.loss(residuals, is_normal, torch.ones_like(is_normal), both=True)[name].backward()
        reached = {other for other, part in parts.items() if any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())}
        assert reached == {name}
    assert bool((net.boundary != 0).all())
