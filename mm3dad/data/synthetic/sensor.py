"""The instruments: noise, blur and missing points on what the camera and the depth sensor would see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mm3dad.data.synthetic._fields import Map, Rng, smooth_noise
from mm3dad.data.synthetic.render import FOCAL, View

DEPTH_NOISE = 0.06  # standard deviation on a surface that faces the sensor, mm


def depth_noise(view: View) -> Map:
    """Return the standard deviation of the depth at each pixel, mm: it grows with the slope."""
    tangent = 1 / np.maximum(view.facing, 0.2) ** 2 - 1
    return DEPTH_NOISE * (1 + 1.2 * np.minimum(tangent, 6))


def record_xyz(rng: Rng, even: dict[str, float], view: View) -> Map:
    """Record the organised cloud.

    Missing are points in the projector's shadow, on walls steeper than 75 degrees, most points where the projector
    glares, single pixels, and patches anywhere (0.2 to 2 % of the picture).

    Returns:
        (size, size, 3) float32, metres, camera coordinates; (0, 0, 0) where nothing was measured.
    """
    size = len(view.depth)
    fringe = 0.02 * smooth_noise(rng, size, 12)
    grain = 0.75 * smooth_noise(rng, size, 170) + 0.65 * rng.standard_normal((size, size), dtype=np.float32)
    depth = view.depth + depth_noise(view) * grain + fringe
    valid = view.lit & (view.facing > 0.26) & (view.glare < 0.18 + 0.08 * smooth_noise(rng, size, 60))
    patches = smooth_noise(rng, size, 22) + 0.35 * smooth_noise(rng, size, 90)
    lost = int((0.002 + 0.018 * even["missing"]) * size * size)
    valid &= patches < np.partition(patches.ravel(), -lost)[-lost]
    valid &= rng.random((size, size), dtype=np.float32) > np.float32(0.003)
    line = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / np.float32(FOCAL * size)
    z = np.where(valid, depth * np.float32(1e-3), np.float32(0))
    return np.stack([z * line[None, :], z * line[:, None], z], -1).astype(np.float32)


def record_rgb(rng: Rng, even: dict[str, float], view: View) -> NDArray[np.uint8]:
    """Record the picture: slight blur, vignetting, photon and read noise; (size, size, 3) uint8."""
    from scipy.ndimage import gaussian_filter1d

    size = len(view.rgb)
    blur = (0.5 + 0.4 * rng.random()) * size / 400
    rgb = gaussian_filter1d(gaussian_filter1d(view.rgb, blur, 0, truncate=2.5), blur, 1, truncate=2.5)
    line = np.linspace(-1, 1, size, dtype=np.float32)
    rgb *= (1 - (0.03 + 0.04 * rng.random()) * (line[None, :] ** 2 + line[:, None] ** 2))[..., None].astype(np.float32)
    noise = rng.standard_normal(rgb.shape, dtype=np.float32) * np.sqrt(np.clip(rgb, 0.02, 1)) * np.float32(0.006 + 0.012 * even["noise"])
    return (np.clip(rgb + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
