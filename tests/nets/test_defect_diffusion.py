from __future__ import annotations

import pytest
import torch

from mm3dad.nets.defect_diffusion import DefectDiffusion
from mm3dad.nets.latent_diffusion import open_diffusion

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def net():
    return DefectDiffusion(open_diffusion("tiny"), 2, 0)


@pytest.fixture
def batch():
    masks = torch.zeros(1, 64, 64)
    masks[:, 20:40, 20:40] = 1
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), masks, [1], torch.tensor([300, 700])


def clear(net):
    for parameter in (*net.model.unet.parameters(), *net.words.parameters(), *net.masks.parameters()):
        parameter.grad = None


def test_each_loss_reaches_its_words(net, batch):
    expected = {"noise": [0, 5, 6, 7, 8], "attention": [0, 5, 6, 7, 8], "normal": [0]}
    for name, rows in expected.items():
        clear(net)
        terms = net.word_losses(*batch)
        assert terms.keys() == expected.keys()
        terms[name].backward()
        assert net.words.rows.grad.norm(dim=1).nonzero()[:, 0].tolist() == rows
        assert all(parameter.grad is None for parameter in (*net.model.vae.parameters(), *net.model.text.parameters()))
        assert all(parameter.grad is None for parameter in net.masks.parameters())


def test_the_mask_losses_train_the_branch_alone(net, batch):
    clear(net)
    net.masks.train()
    terms = net.mask_losses(*batch)
    net.masks.eval()
    sum(terms.values()).backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in net.masks.parameters())
    assert all(parameter.grad is None for parameter in (*net.model.unet.parameters(), *net.words.parameters()))


def draw(net, seed=0, guidance=2.0, steps=4):
    return net.draw(torch.full((3, 64, 64), 0.5), 1, torch.Generator().manual_seed(seed), steps, guidance)


def test_a_picture_and_its_mask_repeat_by_their_seed(net):
    picture, chance = draw(net)
    assert picture.shape == (3, 64, 64) and chance.shape == (64, 64)
    assert bool(((picture >= 0) & (picture <= 1) & (chance >= 0) & (chance <= 1)).all())
    again, other = draw(net), draw(net, 1)
    assert torch.equal(picture, again[0]) and torch.equal(chance, again[1]) and not torch.equal(picture, other[0])
    assert not torch.equal(picture, draw(net, guidance=6.0)[0])


def test_the_mask_is_the_mean_of_the_last_three_steps(net, monkeypatch):
    judge, votes = net.masks.judge, []

    def keep(features):
        votes.append(judge(features))
        return votes[-1]

    monkeypatch.setattr(net.masks, "judge", keep)
    chance = draw(net, steps=6)[1]
    assert len(votes) == 3 and torch.equal(chance, torch.stack(votes).mean(0)[0])
