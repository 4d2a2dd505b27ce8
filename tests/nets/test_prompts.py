"""Prompts of CLIP's text tower: the plain path is open_clip's, learned tokens and regions change it."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from mm3dad.nets.prompts import CONTEXT, DEEP, Prompts, encode_prompts

WIDTH, CHANNELS, BLOCKS = 16, 12, 4


@pytest.fixture(scope="module")
def text():
    """A CLIP of the published layout in small."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = open_clip.CLIPVisionCfg(layers=2, width=32, head_width=8, patch_size=14, image_size=28)
        words = open_clip.CLIPTextCfg(width=WIDTH, heads=2, layers=BLOCKS)
        return open_clip.CLIP(CHANNELS, image, words).eval().requires_grad_(False)


def make_prompts():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Prompts(WIDTH, CHANNELS, BLOCKS)


def call(text, prompts, regions):
    start, *endings = (torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(n)) for n in (1, 3, 4))
    return prompts(text, start, tuple(endings), regions)


def test_without_learned_tokens_it_is_open_clips_path(text):
    for phrase in ("object.", "damaged object."):
        tokens = open_clip.tokenize([phrase])
        length = int(tokens[0].argmax()) + 1
        embedded = text.token_embedding(tokens)[:, :length]
        found = encode_prompts(text, embedded, torch.empty(0, DEEP, WIDTH))
        torch.testing.assert_close(found, normalize(text.encode_text(tokens), dim=1), rtol=1e-4, atol=1e-5)


def test_features_are_unit_and_follow_the_regions(text):
    prompts, regions = make_prompts(), torch.randn(3, 2, CHANNELS, generator=torch.Generator().manual_seed(2))
    found = call(text, prompts, regions)
    assert found.shape == (3, 2, CHANNELS)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(3, 2))
    moved = regions.clone()
    moved[1, 1] = 0
    again = call(text, prompts, moved)
    assert torch.equal(again[[0, 2]], found[[0, 2]]) and torch.equal(again[1, 0], found[1, 0])
    assert not torch.allclose(again[1, 1], found[1, 1]) and bool(again.isfinite().all())


def test_gradients_reach_what_is_learned_and_no_other(text):
    prompts = make_prompts()
    call(text, prompts, torch.randn(2, 2, CHANNELS)).sum().backward()
    for name, parameter in prompts.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, name
    assert all(parameter.grad is None for parameter in text.parameters())


def test_published_size():
    prompts = Prompts(768, 768, 12)
    assert prompts.context.shape == (2, CONTEXT, 768) and prompts.deep.shape == (8, 4, 768)
    assert sum(p.numel() for p in prompts.parameters()) == 2 * 12 * 768 + 8 * 4 * 768 + 2 * (768 * 768 + 768)
