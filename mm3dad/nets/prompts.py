"""Learned prompts of CLIP's text tower, moved by what an image shows.

MRAD-CLIP (ICLR 2026, arXiv 2602.00522; retrieval sheet, 3.5), after AnomalyCLIP. Works on the text tower of an open_clip model, which
stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

CONTEXT, DEEP, DEPTH = 12, 4, 9  # learned tokens of a prompt, of each deeper block, and blocks with learned tokens
SPREAD = 0.02  # of initial tokens


class Prompts(nn.Module):
    """What is learned: the context of a normal and of an anomalous prompt, tokens of deeper blocks, and the way from regions to context.

    Args:
        width: channels of text tokens.
        channels: of the space that images and texts share.
        blocks: of the text tower; fewer than 9 take learned tokens in all.
    """

    def __init__(self, width: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.context = nn.Parameter(SPREAD * torch.randn(2, CONTEXT, width))
        self.deep = nn.Parameter(SPREAD * torch.randn(min(DEPTH, blocks) - 1, DEEP, width))
        self.bias = nn.ModuleList([nn.Linear(channels, width) for _ in range(2)])

    def forward(self, text: Any, start: Tensor, endings: tuple[Tensor, Tensor], regions: Tensor) -> Tensor:
        """Return the text features of images: (B, 2, channels), of unit length, normal and anomalous.

        Args:
            text: an open_clip model with its text tower.
            start: (1, width), embedding of the first token.
            endings: (T, width) embeddings of what follows the context in each prompt, the end token last.
            regions: (B, 2, channels), the mean patch of an image's normal and of its anomalous region, zeros for an empty one.
        """
        found = []
        for number, ending in enumerate(endings):
            context = self.context[number] + self.bias[number](regions[:, number])[:, None]
            fixed = [part.expand(len(regions), -1, -1) for part in (start, ending)]
            found.append(encode_prompts(text, torch.cat([fixed[0], context, fixed[1]], dim=1), self.deep))
        return torch.stack(found, dim=1)


def encode_prompts(text: Any, prompts: Tensor, deep: Tensor) -> Tensor:
    """Return the features of prompts (B, channels), of unit length.

    Attention looks back only, so that nothing after the end token matters and the rest of the 77 places is left out.

    Args:
        text: an open_clip model with its text tower.
        prompts: (B, T, width) token embeddings, the end token last.
        deep: (D, n, width), what takes the places after the first token from the second block on, block by block.
    """
    length = prompts.shape[1]
    x = prompts + text.positional_embedding[:length]
    mask = text.attn_mask[:length, :length]
    for number, block in enumerate(text.transformer.resblocks):
        if 0 < number <= len(deep):
            x = torch.cat([x[:, :1], deep[number - 1].expand(len(x), -1, -1), x[:, 1 + deep.shape[1] :]], dim=1)
        x = block(x, attn_mask=mask)
    return F.normalize(text.ln_final(x[:, -1]) @ text.text_projection, dim=1)
