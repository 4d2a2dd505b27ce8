"""How a sensor saw one sample, in a few numbers that need no network: what drifts when a lamp, a lens or a depth sensor does."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.types import Sample

NAMES = {
    "rgb": ("brightness", "redness", "blueness", "sharpness"),
    "xyz": ("measured", "distance", "roughness"),
}
FLOOR = 2.0**-24  # of what a logarithm is taken: below what any sensor tells apart
ROWS = 32  # of a grid whose points are looked at; more tell nothing new


def describe_condition(sample: Sample, name: str) -> Tensor:
    """Describe how a modality was recorded, in octaves (a difference of 1 is a factor of 2).

    Picture: its mean; red and blue beside green; mean difference of neighbouring pixels. Cloud: share of the grid that was measured (of
    a cloud without a grid the number of points); median distance from the sensor; median bend from point to point along the rows
    (constant without a grid).

    Args:
        sample: with this modality.
        name: "rgb" or "xyz".

    Returns:
        (4,) or (3,) float32, finite, in the order of `NAMES`.
    """
    if name == "rgb":
        assert sample.rgb is not None
        values = sample.rgb.mean((1, 2))
        grey = sample.rgb.mean(0)
        edges = (grey[:, 1:] - grey[:, :-1]).abs().sum() / grey.numel()
        red, green, blue, edges = _octaves(torch.stack([*values, edges]))
        return torch.stack([_octaves(values.mean()), red - green, blue - green, edges])
    assert sample.xyz is not None and sample.valid is not None
    step = -(-sample.size[0] // ROWS)
    xyz, valid = sample.xyz[:, ::step], sample.valid[::step]
    cells = sample.valid.numel() if sample.meta.organised else 1
    bend = xyz.new_zeros(())
    if sample.meta.organised:
        together = valid[:, 2:] & valid[:, 1:-1] & valid[:, :-2]
        bend = _median_length(xyz[:, :, 2:] - 2 * xyz[:, :, 1:-1] + xyz[:, :, :-2], together)
    return _octaves(torch.stack([sample.valid.sum() / cells, _median_length(xyz, valid), bend]))


def _median_length(vectors: Tensor, wanted: Tensor) -> Tensor:
    """Return the median length of the wanted (h, w) of vectors (3, h, w), 0 without any."""
    lengths = vectors.square().sum(0)[wanted]
    return lengths.median().sqrt() if len(lengths) else vectors.new_zeros(())


def _octaves(values: Tensor) -> Tensor:
    return values.clamp_min(FLOOR).log2()
