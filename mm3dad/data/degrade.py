"""What a worse sensor would have recorded: seeded degradations of one sample, for tests of robustness.

Each function returns a new sample that comes from no file, with the mask and the label of the old one; a missing modality stays missing.
The same sample, seed and strength give the same numbers, whatever ran before.
"""

from __future__ import annotations

import dataclasses
import hashlib

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mm3dad.errors import ConfigError
from mm3dad.types import Sample

PATCH = 6  # pixels of the patches in which points get lost


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} must lie between {low:g} and {high:g}, got {value}")


def _generator(sample: Sample, seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}/{sample.meta.category}/{sample.meta.id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _replace(sample: Sample, rgb: Tensor | None = None, xyz: Tensor | None = None) -> Sample:
    """Return the sample with another picture or cloud; its files go, since features kept for them would be taken for it."""
    meta = dataclasses.replace(sample.meta, paths={})
    if xyz is not None:
        return dataclasses.replace(sample, xyz=xyz, valid=None, meta=meta)
    return dataclasses.replace(sample, rgb=sample.rgb if rgb is None else rgb, meta=meta)


def add_depth_noise(sample: Sample, sigma: float, seed: int = 0) -> Sample:
    """Move each point along its ray, independently of its neighbours.

    Args:
        sample: with intrinsics or not: the ray goes through the camera's centre (0, 0, 0).
        sigma: standard deviation of z in metres, >= 0.
        seed: another seed, other noise.
    Raises:
        ConfigError: sigma is out of range.
    """
    _check("sigma", sigma, 0, 1)
    if sample.xyz is None:
        return _replace(sample)
    z = sample.xyz[2]
    step = sigma * torch.randn(z.shape, generator=_generator(sample, seed, "depth"))
    return _replace(sample, xyz=sample.xyz * (1 + step / z.where(z != 0, 1)))


def add_picture_noise(sample: Sample, sigma: float, seed: int = 0) -> Sample:
    """Add photon noise: its deviation grows with the square root of the brightness.

    Args:
        sample: any.
        sigma: standard deviation of a white pixel, in [0, 1].
        seed: another seed, other noise.
    Raises:
        ConfigError: sigma is out of range.
    """
    _check("sigma", sigma, 0, 1)
    if sample.rgb is None:
        return _replace(sample)
    grain = torch.randn(sample.rgb.shape, generator=_generator(sample, seed, "picture"))
    return _replace(sample, rgb=(sample.rgb + sigma * sample.rgb.clamp_min(0.02).sqrt() * grain).clamp(0, 1))


def drop_points(sample: Sample, share: float, seed: int = 0) -> Sample:
    """Lose a share of the measured points, in patches of a few pixels as glare and dark surfaces do.

    Args:
        sample: any.
        share: of the valid points, in [0, 1].
        seed: another seed, other patches.
    Raises:
        ConfigError: share is out of range.
    """
    _check("share", share, 0, 1)
    if sample.xyz is None or sample.valid is None:
        return _replace(sample)
    height, width = sample.size
    generator = _generator(sample, seed, "points")
    coarse = torch.randn(1, 1, -(-height // PATCH), -(-width // PATCH), generator=generator)
    field = interpolate(coarse, size=(height, width), mode="bicubic")[0, 0] + 0.35 * torch.randn(height, width, generator=generator)
    inside = sample.valid.nonzero()
    order = field[sample.valid].argsort(stable=True)
    lost = inside[order[: round(share * len(inside))]]
    xyz = sample.xyz.clone()
    xyz[:, lost[:, 0], lost[:, 1]] = 0
    return _replace(sample, xyz=xyz)


def shift_picture(sample: Sample, rows: int, columns: int) -> Sample:
    """Move the picture against the cloud, as a camera does that was knocked; the border is repeated.

    Args:
        sample: any; mask and cloud stay where they are.
        rows, columns: pixels downwards and to the right.
    Raises:
        ConfigError: the shift is larger than the picture.
    """
    height, width = sample.size
    _check("rows", rows, 1 - height, height - 1)
    _check("columns", columns, 1 - width, width - 1)
    if sample.rgb is None:
        return _replace(sample)
    row = (torch.arange(height) - rows).clamp(0, height - 1)
    column = (torch.arange(width) - columns).clamp(0, width - 1)
    return _replace(sample, rgb=sample.rgb[:, row][:, :, column])


def expose(sample: Sample, stops: float) -> Sample:
    """Expose longer or shorter: each stop doubles the light; white stays white.

    Args:
        sample: any.
        stops: -8 to 8.
    Raises:
        ConfigError: stops are out of range.
    """
    _check("stops", stops, -8, 8)
    return _replace(sample, rgb=None if sample.rgb is None else (sample.rgb * 2.0**stops).clamp(0, 1))


def warm(sample: Sample, share: float) -> Sample:
    """Let the light drift to red: red gains a share, blue loses it.

    Args:
        sample: any.
        share: -0.9 to 0.9; below 0 the light drifts to blue.
    Raises:
        ConfigError: share is out of range.
    """
    _check("share", share, -0.9, 0.9)
    gain = torch.tensor([1 + share, 1.0, 1 - share])[:, None, None]
    return _replace(sample, rgb=None if sample.rgb is None else (sample.rgb * gain).clamp(0, 1))


def blur_picture(sample: Sample, sigma: float) -> Sample:
    """Put the camera out of focus: a Gaussian blur.

    Args:
        sample: any.
        sigma: in pixels, 0 to 100.
    Raises:
        ConfigError: sigma is out of range.
    """
    from scipy.ndimage import gaussian_filter

    _check("sigma", sigma, 0, 100)
    if sample.rgb is None:
        return _replace(sample)
    return _replace(sample, rgb=torch.from_numpy(gaussian_filter(sample.rgb.numpy(), (0, sigma, sigma), mode="nearest")).clamp(0, 1))


def scale_cloud(sample: Sample, factor: float) -> Sample:
    """Deliver the cloud in another unit: 1000 is millimetres taken for metres.

    Args:
        sample: any.
        factor: 1e-6 to 1e6.
    Raises:
        ConfigError: factor is out of range.
    """
    _check("factor", factor, 1e-6, 1e6)
    return _replace(sample, xyz=None if sample.xyz is None else sample.xyz * factor)


def occlude(sample: Sample, share: float, seed: int = 0) -> Sample:
    """Let something reach into the view from one edge: it is black in the picture and without points in the cloud.

    Args:
        sample: any.
        share: of the view, in [0, 0.9].
        seed: another seed, other edges.
    Raises:
        ConfigError: share is out of range.
    """
    _check("share", share, 0, 0.9)
    height, width = sample.size
    edge = int(torch.randint(4, (), generator=_generator(sample, seed, "edge")))
    line = torch.arange(height)[:, None] if edge < 2 else torch.arange(width)[None]
    depth = line if edge % 2 == 0 else line.max() - line
    free = (depth >= share * (height if edge < 2 else width)).expand(height, width)
    hidden = _replace(sample, rgb=None if sample.rgb is None else sample.rgb * free)
    return _replace(hidden, xyz=None if hidden.xyz is None else hidden.xyz * free)
