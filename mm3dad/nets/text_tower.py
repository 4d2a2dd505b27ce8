"""CLIP's text transformer under the names its published files use, on token embeddings, so that new words can be learned.

After "Learning Transferable Visual Models From Natural Language Supervision" (CLIP, ICML 2021); the text encoder of Stable Diffusion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm3dad.errors import ConfigError

ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": functional.gelu}


class TextTower(nn.Module):
    """Pre-norm transformer whose attention looks back only.

    Args:
        words: rows of the token table.
        width: channels; a multiple of `heads`.
        layers, heads: of the transformer.
        hidden: channels between the two layers of a block's MLP.
        length: most tokens of a text.
        activation: "quick_gelu" (CLIP ViT-L/14) or "gelu".

    Raises:
        ConfigError: another activation, or a width that heads do not divide.
    """

    def __init__(self, words: int, width: int, layers: int, heads: int, hidden: int, length: int, activation: str = "quick_gelu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS or width % heads:
            raise ConfigError(f"a text tower needs activation {' or '.join(ACTIVATIONS)} and width divisible by heads, got {activation}, "
                              f"{width} and {heads}")  # fmt: skip
        self.length = length
        self.text_model = nn.Module()
        self.text_model.embeddings = nn.Module()
        self.text_model.embeddings.token_embedding = nn.Embedding(words, width)
        self.text_model.embeddings.position_embedding = nn.Embedding(length, width)
        self.text_model.encoder = nn.Module()
        self.text_model.encoder.layers = nn.ModuleList(_Layer(width, heads, hidden, activation) for _ in range(layers))
        self.text_model.final_layer_norm = nn.LayerNorm(width)
        for table in (self.text_model.embeddings.token_embedding, self.text_model.embeddings.position_embedding):
            nn.init.normal_(table.weight, std=0.02)

    @property
    def table(self) -> Tensor:
        """The token table, (words, width)."""
        return self.text_model.embeddings.token_embedding.weight

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the last states (B, T, width), normalised, of token embeddings (B, T, width), T <= length."""
        x = embeddings + self.text_model.embeddings.position_embedding.weight[: embeddings.shape[1]]
        for layer in self.text_model.encoder.layers:
            x = layer(x)
        states: Tensor = self.text_model.final_layer_norm(x)
        return states


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = _Attention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(width, hidden)
        self.mlp.fc2 = nn.Linear(hidden, width)
        self._activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        found: Tensor = x + self.mlp.fc2(self._activation(self.mlp.fc1(self.layer_norm2(x))))
        return found


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self._heads = heads

    def forward(self, x: Tensor) -> Tensor:
        parts = (one(x).unflatten(-1, (self._heads, -1)).transpose(1, 2) for one in (self.q_proj, self.k_proj, self.v_proj))
        found: Tensor = self.out_proj(functional.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))
        return found
