from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mm3dad.errors import ConfigError
from mm3dad.nets.text_tower import TextTower


def reference(state, x, heads, activation):
    """The tower written out, one head and one token at a time."""
    x = x + state["text_model.embeddings.position_embedding.weight"][: len(x)]
    number = 0
    while f"text_model.encoder.layers.{number}.mlp.fc1.weight" in state:
        own = {key.removeprefix(f"text_model.encoder.layers.{number}."): value for key, value in state.items()}

        def linear(name, y, own=own):
            return y @ own[f"{name}.weight"].T + own[f"{name}.bias"]

        def norm(name, y, own=own):
            return functional.layer_norm(y, y.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"])

        y = norm("layer_norm1", x)
        q, k, v = (linear(f"self_attn.{part}_proj", y) for part in "qkv")
        size = q.shape[1] // heads
        rows = []
        for place in range(len(x)):
            parts = []
            for head in range(heads):
                cut = slice(head * size, (head + 1) * size)
                weights = (k[: place + 1, cut] @ q[place, cut] / size**0.5).softmax(0)
                parts.append(weights @ v[: place + 1, cut])
            rows.append(torch.cat(parts))
        x = x + linear("self_attn.out_proj", torch.stack(rows))
        x = x + linear("mlp.fc2", activation(linear("mlp.fc1", norm("layer_norm2", x))))
        number += 1
    return functional.layer_norm(x, x.shape[-1:], state["text_model.final_layer_norm.weight"], state["text_model.final_layer_norm.bias"])


@pytest.mark.parametrize(("name", "activation"), [("gelu", functional.gelu), ("quick_gelu", lambda y: y / (1 + (-1.702 * y).exp()))])
def test_equals_the_tower_written_out(name, activation):
    torch.manual_seed(0)
    tower = TextTower(5, width=12, layers=2, heads=3, hidden=20, length=7, activation=name).requires_grad_(False)
    x = torch.randn(2, 6, 12)
    found = tower(x)
    for one, row in zip(x, found, strict=True):
        assert torch.allclose(reference(tower.state_dict(), one, 3, activation), row, atol=1e-5)


def test_bad_settings():
    for change in ({"activation": "relu"}, {"heads": 5}):
        with pytest.raises(ConfigError, match="a text tower needs activation"):
            TextTower(**{"words": 5, "width": 12, "layers": 1, "heads": 3, "hidden": 4, "length": 7} | change)
