"""The point transformer and the published checkpoint's layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from mm3dad.errors import ConfigError, ShapeError, WeightsError
from mm3dad.nets import point_transformer
from mm3dad.nets.point_transformer import PointTransformer, load_point_mae

SMALL = {"depth": 3, "dim": 24, "heads": 3}


def layout(depth, dim):
    """Names and shapes of the published encoder, written down from its checkpoint's description."""
    shapes = {}
    for part, (narrow, wide, out) in {"first_conv": (3, 128, 256), "second_conv": (512, 512, dim)}.items():
        shapes |= {f"encoder.{part}.0.weight": (wide, narrow, 1), f"encoder.{part}.0.bias": (wide,)}
        shapes |= {f"encoder.{part}.1.{name}": (wide,) for name in ("weight", "bias", "running_mean", "running_var")}
        shapes |= {f"encoder.{part}.1.num_batches_tracked": ()}
        shapes |= {f"encoder.{part}.3.weight": (out, wide, 1), f"encoder.{part}.3.bias": (out,)}
    shapes |= {"pos_embed.0.weight": (128, 3), "pos_embed.0.bias": (128,), "pos_embed.2.weight": (dim, 128), "pos_embed.2.bias": (dim,)}
    linear = {"attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    for block in range(depth):
        start = f"blocks.blocks.{block}."
        shapes |= {f"{start}{norm}.{name}": (dim,) for norm in ("norm1", "norm2") for name in ("weight", "bias")}
        shapes |= {f"{start}attn.qkv.weight": (3 * dim, dim)}
        for name, shape in linear.items():
            shapes |= {f"{start}{name}.weight": shape, f"{start}{name}.bias": shape[:1]}
    return shapes | {"norm.weight": (dim,), "norm.bias": (dim,)}


def make_state(depth=3, dim=24):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in layout(depth, dim).items():
        scale = max(1, int(np.prod(shape[1:]))) ** -0.5
        state[f"MAE_encoder.{key}"] = torch.rand(shape, generator=generator) * scale + (0.5 if "running_var" in key else 0)
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        state[key] = torch.tensor(7)
    return state


@pytest.fixture
def write(tmp_path):
    def save(state, **rest):
        torch.save({"base_model": state, **rest}, tmp_path / "pretrain.pth")
        return tmp_path / "pretrain.pth"

    return save


@pytest.fixture
def groups():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 16, 3, generator=generator) * 0.1, torch.randn(10, 3, generator=generator)


def forward_reference(state, groups, centers, layers, heads):
    """The published forward pass in plain functions, weights taken by their published names."""

    def get(name):
        return state[f"MAE_encoder.{name}"]

    def linear(name, x):
        bias = state.get(f"MAE_encoder.{name}.bias")
        return functional.linear(x, get(f"{name}.weight").flatten(1), bias)

    def layer_norm(name, x):
        return functional.layer_norm(x, x.shape[-1:], get(f"{name}.weight"), get(f"{name}.bias"), 1e-5)

    def convolve(name, x):
        x = linear(f"{name}.0", x)
        x = (x - get(f"{name}.1.running_mean")) / (get(f"{name}.1.running_var") + 1e-5).sqrt()
        return linear(f"{name}.3", torch.relu(x * get(f"{name}.1.weight") + get(f"{name}.1.bias")))

    single = convolve("encoder.first_conv", groups)
    whole = single.amax(dim=1, keepdim=True).expand_as(single)
    tokens = convolve("encoder.second_conv", torch.cat([whole, single], dim=2)).amax(dim=1)
    position = linear("pos_embed.2", functional.gelu(linear("pos_embed.0", centers)))
    read = []
    for number in range(max(layers) + 1):
        block = f"blocks.blocks.{number}"
        tokens = tokens + position
        query, key, value = linear(f"{block}.attn.qkv", layer_norm(f"{block}.norm1", tokens)).chunk(3, dim=1)
        mixed = []
        for q, k, v in zip(*(part.chunk(heads, dim=1) for part in (query, key, value)), strict=True):
            mixed.append(torch.softmax(q @ k.T / q.shape[1] ** 0.5, dim=1) @ v)
        tokens = tokens + linear(f"{block}.attn.proj", torch.cat(mixed, dim=1))
        hidden = functional.gelu(linear(f"{block}.mlp.fc1", layer_norm(f"{block}.norm2", tokens)))
        tokens = tokens + linear(f"{block}.mlp.fc2", hidden)
        if number in layers:
            read.append(layer_norm("norm", tokens))
    return read


def test_tokens_equal_the_plain_forward_pass(write, groups):
    state = make_state()
    found = load_point_mae(write(state), **SMALL)(*groups, layers=(0, 2))
    for token, expected in zip(found, forward_reference(state, *groups, (0, 2), 3), strict=True):
        torch.testing.assert_close(token, expected, rtol=1e-4, atol=1e-5)


def test_published_names_and_sizes():
    with torch.device("meta"):
        net = PointTransformer()
    found = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert found == layout(12, 384)


def test_decoder_keys_prefix_and_metrics_do_not_disturb(write, groups):
    state = make_state()
    expected = load_point_mae(write(state), **SMALL)(*groups, layers=(2,))[0]
    decorated = {f"module.{key}": value for key, value in state.items()} | {
        "module.mask_token": torch.zeros(1),
        "MAE_decoder.norm.bias": torch.zeros(2),
    }
    path = write(decorated, epoch=300, metrics={"acc": np.float64(1.5)}, best_metrics=np.float32(2))
    assert torch.equal(load_point_mae(path, **SMALL)(*groups, layers=(2,))[0], expected)
    early = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert torch.equal(load_point_mae(write(early), **SMALL)(*groups, layers=(2,))[0], expected)


def test_inference_only(write):
    net = load_point_mae(write(make_state()), **SMALL)
    assert not net.training
    assert not any(weight.requires_grad for weight in net.parameters())


def test_order_of_groups_and_of_their_points_does_not_matter(write, groups):
    net = load_point_mae(write(make_state()), **SMALL)
    points, centers = groups
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(points[order].flip(1), centers[order], (2,))[0], net(points, centers, (2,))[0][order])


def test_blocks_of_groups_join_without_a_seam(write, groups, monkeypatch):
    net = load_point_mae(write(make_state()), **SMALL)
    expected = net(*groups, layers=(1,))[0]
    monkeypatch.setattr(point_transformer, "GROUP_BLOCK", 3)
    torch.testing.assert_close(net(*groups, layers=(1,))[0], expected)


def test_batch_statistics_are_those_of_the_cloud(write, groups):
    path = write(make_state())
    plain, own = (load_point_mae(path, **SMALL, batch_statistics=flag) for flag in (False, True))
    points, centers = groups
    before = {key: value.clone() for key, value in own.state_dict().items()}
    found = own(points, centers, (2,))[0]
    assert torch.equal(own(points, centers, (2,))[0], found)
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    assert not torch.allclose(plain(points, centers, (2,))[0], found)
    convolution, norm = own.encoder.first_conv[:2]
    values = convolution(points.transpose(1, 2))
    mean, deviation = values.mean((0, 2)), (values.var((0, 2), correction=0) + 1e-5).sqrt()
    expected = (values - mean[:, None]) / deviation[:, None] * norm.weight[:, None] + norm.bias[:, None]
    torch.testing.assert_close(norm(values), expected, rtol=1e-4, atol=1e-5)


def test_layers_come_in_the_order_asked(write, groups):
    net = load_point_mae(write(make_state()), **SMALL)
    assert torch.equal(net(*groups, layers=(2, 0))[1], net(*groups, layers=(0,))[0])


@pytest.mark.parametrize("layers", [(), (3,), (-1, 2)])
def test_bad_layers(groups, layers):
    with pytest.raises(ConfigError, match="layers must be blocks 0 to 2"):
        PointTransformer(**SMALL)(*groups, layers=layers)


def test_bad_input(groups):
    net = PointTransformer(**SMALL)
    with pytest.raises(ShapeError, match=r"groups must be floating \(G, size, 3\)"):
        net(groups[0][..., :2], groups[1], (0,))
    with pytest.raises(ShapeError, match=r"groups must be floating \(G, size, 3\), got \(0, 16, 3\)"):
        net(groups[0][:0], groups[1][:0], (0,))
    with pytest.raises(ShapeError, match="G = 10 as in groups"):
        net(groups[0], groups[1][1:], (0,))
    with pytest.raises(ConfigError, match="heads a divisor of dim"):
        PointTransformer(depth=2, dim=24, heads=5)


def test_missing_key_is_named(write):
    state = make_state()
    del state["MAE_encoder.blocks.blocks.1.attn.qkv.weight"], state["MAE_encoder.norm.bias"]
    with pytest.raises(WeightsError, match=r"lacks 'MAE_encoder.blocks.blocks.1.attn.qkv.weight' \(2 of"):
        load_point_mae(write(state), **SMALL)


def test_other_architectures_are_refused(write):
    path = write(make_state())
    with pytest.raises(WeightsError, match=r"encoder.second_conv.3.weight must be \(48, 512, 1\), got \(24, 512, 1\)"):
        load_point_mae(path, depth=3, dim=48, heads=3)
    with pytest.raises(WeightsError, match=r"lacks 'MAE_encoder.blocks.blocks.3"):
        load_point_mae(path, depth=4, dim=24, heads=3)
    with pytest.raises(WeightsError, match="has 'MAE_encoder.blocks.blocks.2.attn.proj.bias', which this encoder of depth 2 has not"):
        load_point_mae(path, depth=2, dim=24, heads=3)


def test_unreadable_files_are_refused(tmp_path, write):
    with pytest.raises(WeightsError, match="found none"):
        load_point_mae(tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_point_mae(tmp_path / "text.pth")
    path = write(make_state())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_point_mae(path, **SMALL)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(WeightsError, match="dictionary 'base_model'"):
        load_point_mae(path, **SMALL)
    with pytest.raises(WeightsError, match="lacks 'MAE_encoder.encoder.first_conv.0.weight'"):
        load_point_mae(write({"other": torch.zeros(3)}), **SMALL)


def test_code_in_a_checkpoint_is_not_run(tmp_path, write):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_point_mae(write(make_state(), epoch=Trap()), **SMALL)
    assert not (tmp_path / "sprung").exists()
