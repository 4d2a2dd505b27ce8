"""CLIP through open_clip: the published layout, checkpoints by path, errors."""

from __future__ import annotations

from dataclasses import replace

import open_clip
import pytest
import torch

from mm3dad.errors import ConfigError, WeightsError
from mm3dad.features import clip
from mm3dad.features.clip import ClipExtractor, is_clip
from mm3dad.features.weights import TABLE
from tests.methods.parts import make_sample

SMALL = "clip_small"


@pytest.fixture
def small(monkeypatch):
    """A CLIP of the published key layout, three blocks deep, as a row of the table."""

    class Model:
        def __init__(self):
            self.visual = open_clip.transformer.VisionTransformer(28, 14, 32, 3, 4, 2, output_dim=12)

    monkeypatch.setitem(TABLE, SMALL, replace(TABLE["clip_vitl14_336"], name=SMALL, architecture="small"))

    def create(name, pretrained=None):
        if pretrained:
            raise OSError("no network")
        return Model()

    monkeypatch.setattr(open_clip, "create_model", create)


def test_the_table_names_the_published_model():
    row = TABLE["clip_vitl14_336"]
    assert is_clip(row.name) and not is_clip("efficientnet_lite0") and not is_clip("nothing") and row.licence == "MIT"
    with torch.device("meta"):
        visual = open_clip.create_model(row.architecture, pretrained=None, device="meta").visual
    assert visual.conv1.weight.shape == (1024, 3, 14, 14) and visual.positional_embedding.shape == (1 + 24 * 24, 1024)
    assert len(visual.transformer.resblocks) == 24 and visual.proj.shape == (1024, 768)
    # QuickGELU, which OpenAI trained with: x * sigmoid(1.702 x)
    assert "QuickGELU" in type(visual.transformer.resblocks[0].mlp.gelu).__name__


@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_a_checkpoint_by_path(small, tmp_path, prefix):
    made = ClipExtractor(SMALL, "random", 56, seed=3)
    state = {prefix + name: value for name, value in made._visual.state_dict().items()} | ({"logit_scale": torch.ones(1)} if prefix else {})
    torch.save(state, tmp_path / "clip.pth")
    loaded = ClipExtractor(SMALL, str(tmp_path / "clip.pth"), 56)
    a, b = (extractor.describe([make_sample(1)])[0] for extractor in (made, loaded))
    assert torch.equal(a.descriptor, b.descriptor) and torch.equal(a.layers[0], b.layers[0])
    assert a.grid == (4, 4) and a.layers[0].shape == (16, 32) and a.descriptor.shape == (12,)
    assert len(loaded.weights[0]["sha256"]) == 64 and loaded.weights[0]["licence"] == "MIT" and made.weights[0]["name"] == "random"


def test_errors_say_what_to_do(small, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="is no CLIP model of the weight table"):
        ClipExtractor("efficientnet_lite0", "default", 56)
    with pytest.raises(WeightsError, match="expected a weight file at"):
        ClipExtractor(SMALL, str(tmp_path / "none.pth"), 56)
    monkeypatch.setenv("MM3DAD_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="give a file with weights=PATH"):
        ClipExtractor(SMALL, "default", 56)
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install 'mm3dad\[clip\]'"):
        clip.ClipExtractor(SMALL, "random", 56)
