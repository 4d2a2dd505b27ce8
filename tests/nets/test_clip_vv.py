"""The value-value path beside CLIP's own: against plain loops, and with the own path unchanged."""

from __future__ import annotations

import pytest
import torch
from open_clip.transformer import VisionTransformer

from mm3dad.nets.clip_vv import encode_image


@pytest.fixture(scope="module")
def visual():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VisionTransformer(image_size=28, patch_size=7, width=32, layers=3, heads=4, mlp_ratio=2, output_dim=12).eval()


@torch.no_grad()
def slow_encode(visual, images):
    """Head by head and block by block, for images of the tower's own size."""
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(x)
    local = None
    for number, block in enumerate(visual.transformer.resblocks):
        normed, attention = block.ln_1(x), block.attn
        width, heads = attention.embed_dim, attention.num_heads
        q, k, v = (normed @ w.T + b for w, b in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True))
        plain, own = [], []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scale = (width // heads) ** -0.5
            plain.append((q[..., part] @ k[..., part].transpose(1, 2) * scale).softmax(-1) @ v[..., part])
            own.append((v[..., part] @ v[..., part].transpose(1, 2) * scale).softmax(-1) @ v[..., part])
        if number:
            local = (x if local is None else local) + attention.out_proj(torch.cat(own, -1))
        x = x + attention.out_proj(torch.cat(plain, -1))
        x = x + block.mlp(block.ln_2(x))
    return x[:, 0] @ visual.proj, visual.ln_post(local)[:, 1:]


def test_equals_the_loop_over_heads(visual):
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(encode_image(visual, images), slow_encode(visual, images), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_own_path_is_clips(visual):
    images = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    tokens = []
    hook = visual.transformer.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    with torch.no_grad():
        visual(images)
    hook.remove()
    torch.testing.assert_close(encode_image(visual, images)[0], tokens[0][:, 0] @ visual.proj, atol=1e-5, rtol=1e-4)


def test_other_sizes_resize_the_positions_and_change_nothing(visual):
    before = visual.positional_embedding.clone()
    descriptor, local = encode_image(visual, torch.zeros(1, 3, 49, 35))
    assert descriptor.shape == (1, 12) and local.shape == (1, 35, 32)
    assert torch.equal(visual.positional_embedding, before)
