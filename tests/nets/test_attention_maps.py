from __future__ import annotations

import copy

import pytest
import torch

from mm3dad.nets.attention_maps import align_attention, shrink_masks, watch_attention
from mm3dad.nets.defect_words import DefectWords, make_prompt
from mm3dad.nets.latent_diffusion import open_diffusion


@pytest.fixture(scope="module")
def opened():
    pytest.importorskip("diffusers")
    return open_diffusion("tiny")


@pytest.fixture
def model(opened):
    return copy.deepcopy(opened)


def square():
    masks = torch.zeros(1, 64, 64)
    masks[:, 12:36, 20:44] = 1
    return masks


def loss_of(model, words, kind=0):
    generator = torch.Generator().manual_seed(1)
    with watch_attention(model.unet) as maps:
        told = words.encode(model.text, [make_prompt(kind)])
        model.unet(torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([500]), told)
    return align_attention(maps, [make_prompt(kind)], shrink_masks(square(), 16))


def test_watching_changes_nothing_and_keeps_probabilities(model):
    before, told = model.unet.attn_processors, torch.randn(2, 12, 32)
    noisy = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        plain = model.unet(noisy, 10, told).sample
        with watch_attention(model.unet) as maps:
            seen = model.unet(noisy, 10, told).sample
    assert torch.allclose(plain, seen, atol=1e-5)
    assert {level: [one.shape for one in layers] for level, layers in maps.items()} == {1: [(2, 64, 12)], 2: [(2, 16, 12)]}
    for layers in maps.values():
        assert torch.allclose(layers[0].sum(-1), torch.ones(()), atol=1e-5)
    assert model.unet.attn_processors == before


def test_masks_shrink_by_the_maximum_and_lose_no_small_defect():
    found = shrink_masks(square(), 16)
    assert found[1].shape == (1, 8, 8) and found[2].shape == (1, 4, 4)
    assert float(found[1].max()) == pytest.approx(1, abs=1e-5)
    assert bool(found[1][0, 2:4, 3:5].all()) and not bool(found[1][0, 6:].any())
    speck = torch.zeros(1, 512, 512)
    speck[0, 3, 3] = 1
    assert all(bool((one > 0).any()) for one in shrink_masks(speck, 64).values())


def test_the_loss_of_given_maps():
    prompt = make_prompt(0)
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    maps = torch.zeros(1, 4, 12)
    maps[0, :, list(prompt.defect)] = mask.flatten()[:, None]
    maps[0, 1:, prompt.part] = 0.5
    assert float(align_attention({1: [maps]}, [prompt], {1: mask})) == pytest.approx(0, abs=1e-6)
    swapped = maps.clone()
    swapped[0, :, prompt.part] = mask.flatten()
    assert float(align_attention({1: [swapped]}, [prompt], {1: mask})) == pytest.approx(1, abs=1e-6)
    assert float(align_attention({1: [maps, maps]}, [prompt], {1: 1 - mask})) == pytest.approx(1 + 2 / 3 + 1 / 3, abs=1e-5)
    assert float(align_attention({1: [torch.ones(1, 4, 12)]}, [prompt], {1: 0 * mask})) == 0


def test_the_gradient_reaches_queries_keys_and_the_right_words_only(model):
    words = DefectWords(model.text, model.vocabulary, 3)
    loss_of(model, words, kind=1).backward()
    assert words.rows.grad.norm(dim=1).bool().tolist() == [True] + [False] * 4 + [True] * 4 + [False] * 4
    assert all(parameter.grad is None for parameter in model.text.parameters())
    for level in (1, 2):
        attention = model.unet.down_blocks[level].attentions[0].transformer_blocks[0].attn2
        assert bool(attention.to_q.weight.grad.any()) and bool(attention.to_k.weight.grad.any())
    assert all(parameter.grad is None or not bool(parameter.grad.any()) for parameter in model.unet.up_blocks.parameters())


def test_training_on_it_binds_the_words_to_the_defect(model):
    words = DefectWords(model.text, model.vocabulary, 1)
    optimizer = torch.optim.Adam([*model.unet.parameters(), *words.parameters()], lr=2e-3)
    losses = []
    for _ in range(25):
        loss = loss_of(model, words)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
