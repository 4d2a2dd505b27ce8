from __future__ import annotations

import pytest
import torch
from torch import nn

from mm3dad.nets.mask_branch import MaskBranch, tap_outputs

pytest.importorskip("diffusers")


def test_sizes_follow_from_the_networks():
    torch.manual_seed(0)
    branch = MaskBranch((1280, 640), (8, 8, 4)).eval()
    with torch.no_grad():
        coarse = branch.look([torch.randn(1, 1280, 4, 4), torch.randn(1, 640, 8, 8)], 8)
        assert coarse.shape == (1, 192, 8, 8)
        fine = branch.refine(coarse, [torch.randn(1, 8, 16, 16), torch.randn(1, 8, 32, 32), torch.randn(1, 4, 32, 32)])
        found = branch.judge(fine)
    assert fine.shape == (1, 192, 32, 32) and found.shape == (1, 32, 32) and bool(((found >= 0) & (found <= 1)).all())
    small = MaskBranch((64, 32), (8,)).eval()
    assert small.look([torch.randn(2, 64, 2, 2), torch.randn(2, 32, 4, 4)], 4).shape == (2, 96, 4, 4)


def test_it_learns_to_read_a_mask_off_features():
    torch.manual_seed(0)
    branch = MaskBranch((8, 8), (8, 8, 4)).train()
    optimizer = torch.optim.AdamW(branch.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def draw():
        masks = torch.zeros(4, 32, 32)
        for one in masks[:2]:
            y, x = torch.randint(20, (2,), generator=generator).tolist()
            one[y : y + 12, x : x + 12] = 1
        small = nn.functional.avg_pool2d(masks[:, None], 4)
        levels = [nn.functional.avg_pool2d(small, 2).expand(-1, 8, -1, -1), small.expand(-1, 8, -1, -1)]
        sizes = ((16, 8), (32, 8), (32, 4))
        fine = [nn.functional.interpolate(masks[:2, None], size=(side, side)).expand(-1, count, -1, -1) for side, count in sizes]
        noise = [one + 0.1 * torch.randn(one.shape, generator=generator) for one in (*levels, *fine)]
        return masks, noise[:2], noise[2:]

    losses = []
    for _ in range(40):
        masks, levels, fine = draw()
        terms = branch.loss(branch.look(levels, 8), fine, masks)
        assert set(terms) == {"fine", "coarse"}
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append(float(sum(terms.values()).detach()))
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    branch.eval()
    masks, levels, fine = draw()
    with torch.no_grad():
        found = branch.judge(branch.refine(branch.look(levels, 8)[:2], fine)) > 0.5
    truth = masks[:2] > 0
    assert float((found & truth).sum() / (found | truth).sum()) > 0.8


def test_taps_give_the_latest_outputs_and_leave_no_hook():
    layer = nn.Linear(2, 3)
    with tap_outputs([layer]) as found:
        assert found == [None]
        layer(torch.zeros(1, 2))
        last = layer(torch.ones(1, 2))
    assert found[0] is last
    layer(torch.zeros(1, 2))
    assert found[0] is last
