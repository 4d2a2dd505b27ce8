"""Point transformer in the layout of Point-MAE: tokens of point groups, read at several depths.

The names of the weights are those of the published pre-training checkpoint. In its `base_model` dictionary, behind the prefix
`MAE_encoder.`, it holds

    encoder.first_conv.{0,1,3}.*  encoder.second_conv.{0,1,3}.*      token net: convolution, batch norm, convolution
    pos_embed.{0,2}.*                                                position of the centre
    blocks.blocks.N.{norm1,norm2,attn.qkv,attn.proj,mlp.fc1,mlp.fc2}.*
    norm.*

The other keys belong to the decoder of the pre-training and are left alone.
Source: Pang et al., Masked Autoencoders for Point Cloud Self-supervised Learning, ECCV 2022; reading at several blocks as in M3DM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm3dad.errors import ConfigError, ShapeError, WeightsError
from mm3dad.files import read_checkpoint

PREFIX = "MAE_encoder."
# Groups that pass the token net together: 64 groups of 128 points and 512 channels take 17 MB an array.
GROUP_BLOCK = 64


class PointTransformer(nn.Module):
    """Turn groups of points into tokens; starts in eval mode, and drops no path in training either.

    Args:
        depth: transformer blocks.
        dim: channels of a token.
        heads: attention heads; divides `dim`.
        batch_statistics: batch norm uses the statistics of the cloud at hand instead of those of the training. Most published
            anomaly detectors do so, by never calling eval(); then tokens depend on the whole cloud, and one cloud at a time is
            the only form that repeats.
    Raises:
        ConfigError: `depth` below 1 or `heads` does not divide `dim`.
    """

    def __init__(self, depth: int = 12, dim: int = 384, heads: int = 6, batch_statistics: bool = False) -> None:
        super().__init__()
        if depth < 1 or dim < 1 or heads < 1 or dim % heads:
            raise ConfigError(f"depth must be at least 1 and heads a divisor of dim, got depth {depth}, dim {dim}, heads {heads}")
        self.batch_statistics = batch_statistics
        self.encoder = _TokenNet(dim, batch_statistics)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))
        self.blocks = nn.Module()
        self.blocks.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.eval()

    def forward(self, groups: Tensor, centers: Tensor, layers: Sequence[int] = (3, 7, 11)) -> list[Tensor]:
        """Encode one cloud.

        Args:
            groups: (G, size, 3) floating: the points of each group minus its centre, in the scale of the training (unit sphere).
            centers: (G, 3).
            layers: blocks to read, 0-based, ascending or not.
        Returns:
            one (G, dim) tensor per layer, each behind the final layer norm.
        Raises:
            ShapeError: a shape does not fit.
            ConfigError: `layers` is empty or names a block that does not exist.
        """
        if groups.ndim != 3 or groups.shape[2] != 3 or 0 in groups.shape or not groups.is_floating_point():
            raise ShapeError(f"groups must be floating (G, size, 3), got {tuple(groups.shape)} {groups.dtype}")
        if centers.shape != (len(groups), 3):
            raise ShapeError(f"centers must be (G, 3) with G = {len(groups)} as in groups, got {tuple(centers.shape)}")
        # Statistics of the cloud need the whole cloud at once.
        parts = [groups] if self.batch_statistics or self.training else groups.split(GROUP_BLOCK)
        tokens = torch.cat([self.encoder(part) for part in parts])
        return read_blocks(tokens, self.pos_embed(centers), self.blocks.blocks, self.norm, layers)


class DescriptorTransformer(nn.Module):
    """The same blocks on hand-made descriptors of groups in place of their points: small enough to be trained from scratch.

    Args:
        channels: of a descriptor.
        depth, dim, heads: as `PointTransformer`.
    """

    def __init__(self, channels: int, depth: int = 3, dim: int = 96, heads: int = 4) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.embed = nn.Linear(channels, dim)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.eval()

    def standardise(self, descriptors: Tensor) -> None:
        """Take the scale of the descriptors from normal ones (N, channels)."""
        deviation, mean = torch.std_mean(descriptors, dim=0, correction=0)
        self.shift.copy_(mean)
        self.scale.copy_(1 / deviation.clamp_min(1e-3))

    def forward(self, descriptors: Tensor, centers: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Encode one cloud: descriptors (G, channels) at centers (G, 3) to one (G, dim) per block to read.

        Raises:
            ConfigError: `layers` is empty or names a block that does not exist.
        """
        tokens = self.embed((descriptors - self.shift) * self.scale)
        return read_blocks(tokens, self.pos_embed(centers), self.blocks, self.norm, layers)


def read_blocks(tokens: Tensor, position: Tensor, blocks: Any, norm: nn.Module, layers: Sequence[int]) -> list[Tensor]:
    """Pass tokens (G, dim) through blocks, their position (G, dim) added before each, and read some of them behind the norm.

    Raises:
        ConfigError: `layers` is empty or names a block that does not exist.
    """
    if not layers or min(layers) < 0 or max(layers) >= len(blocks):
        raise ConfigError(f"layers must be blocks 0 to {len(blocks) - 1}, got {tuple(layers)}")
    tokens, position = tokens.unsqueeze(0), position.unsqueeze(0)
    read = {}
    for number in range(max(layers) + 1):
        tokens = blocks[number](tokens + position)
        if number in layers:
            read[number] = norm(tokens).squeeze(0)
    return [read[number] for number in layers]


class _TokenNet(nn.Module):
    """Small PointNet: the maximum over a group joins each point's features, and the maximum of those is the token."""

    def __init__(self, dim: int, batch_statistics: bool) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv1d(3, 128, 1), _Norm(128, batch_statistics), nn.ReLU(), nn.Conv1d(128, 256, 1))
        self.second_conv = nn.Sequential(nn.Conv1d(512, 512, 1), _Norm(512, batch_statistics), nn.ReLU(), nn.Conv1d(512, dim, 1))

    def forward(self, groups: Tensor) -> Tensor:
        single = self.first_conv(groups.transpose(1, 2))
        whole = single.amax(dim=2, keepdim=True).expand_as(single)
        return self.second_conv(torch.cat([whole, single], dim=1)).amax(dim=2)


class _Norm(nn.BatchNorm1d):
    def __init__(self, channels: int, batch_statistics: bool) -> None:
        super().__init__(channels)
        self.batch_statistics = batch_statistics

    def forward(self, input: Tensor) -> Tensor:
        if self.batch_statistics:
            return functional.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(input)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = _Attention(dim, heads), _Mlp(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        B, G, C = tokens.shape
        query, key, value = self.qkv(tokens).view(B, G, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(B, G, C))


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(tokens)))


def load_point_mae(path: str | Path, depth: int = 12, dim: int = 384, heads: int = 6, batch_statistics: bool = False) -> PointTransformer:
    """Build the encoder and fill it from a Point-MAE pre-training checkpoint.

    Args:
        path: a `.pth` file in the published layout (see the head of this file).
        depth, dim, heads: architecture; the defaults are the published one.
        batch_statistics: see `PointTransformer`.
    Returns:
        the encoder in eval mode, without gradients, on the CPU.
    Raises:
        WeightsError: the file is missing, unreadable or of another architecture; the first missing or unfit key is named.
    """
    net = PointTransformer(depth, dim, heads, batch_statistics)
    given = _read_encoder(Path(path))
    own = net.state_dict()
    # The counters of batches mean nothing here, and early checkpoints lack them.
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in given]
    if missing:
        raise WeightsError(
            f"{path} lacks {PREFIX + missing[0]!r} ({len(missing)} of {len(needed)} tensors); give a Point-MAE pre-training checkpoint"
        )
    for key in needed:
        if given[key].shape != own[key].shape:
            raise WeightsError(
                f"{path}: {PREFIX + key} must be {tuple(own[key].shape)}, got {tuple(given[key].shape)}; "
                "give a checkpoint of this architecture, or set depth, dim and heads"
            )
    foreign = sorted(key for key in given if key not in own)
    if foreign:
        raise WeightsError(f"{path} has {PREFIX + foreign[0]!r}, which this encoder of depth {depth} has not; set depth, dim and heads")
    net.load_state_dict({key: given[key] for key in needed}, strict=False)
    return net.requires_grad_(False)


def _read_encoder(path: Path) -> dict[str, Tensor]:
    import numpy as np

    if not path.is_file():
        raise WeightsError(f"expected a Point-MAE checkpoint at {path}, found none; give the path of pretrain.pth")
    # Checkpoints of training runs keep their metrics as NumPy numbers: plain values, safe to read.
    scalar = np.float64(0).__reduce__()[0]
    harmless: list[Any] = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType]
    state = read_checkpoint(path, harmless)
    state = state.get("base_model", state) if isinstance(state, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(f"{path} must hold a dictionary 'base_model' of tensors; give a Point-MAE pre-training checkpoint")
    # Parallel training puts `module.` before every name.
    named = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    return {key.removeprefix(PREFIX): value for key, value in named.items() if key.startswith(PREFIX)}
