"""One sample: a part, how it lies and is lit, its defect, what the instruments record, and what the defect changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm3dad.data.synthetic._fields import Map, draw_even, make_rng
from mm3dad.data.synthetic.defects import VARIANTS, add_defect
from mm3dad.data.synthetic.parts import PARTS
from mm3dad.data.synthetic.render import View, draw_light, draw_pose, draw_table, render
from mm3dad.data.synthetic.sensor import depth_noise, record_rgb, record_xyz

NUISANCES = ("exposure", "tone", "missing", "noise", "tilt", "table", "warmth", "scale", "distance")
DEPTH_STEP, COLOR_STEP = 0.2, 0.04  # a pixel belongs to the mask when depth (mm) or albedo changed by more
RGB_SEEN, XYZ_SEEN = 2.0, 4.0  # a defect is visible when its contrast is at least this many standard deviations


@dataclass(frozen=True)
class Scan:
    """A sample as it is written.

    Args:
        rgb: (size, size, 3) uint8.
        xyz: (size, size, 3) float32, metres, (0, 0, 0) where nothing was measured.
        mask: (size, size) bool, the pixels that the defect changed.
        truth: defect kind, variant, contrast and visibility per modality, severity; empty for a good part.
    """

    rgb: NDArray[np.uint8]
    xyz: Map
    mask: NDArray[np.bool_]
    truth: dict[str, Any]


def make_scan(category: str, split: str, defect: str, index: int, seed: int = 0, size: int = 400) -> Scan:
    """Make one sample; the same arguments give the same sample, whatever was made before.

    Part, pose, light, table and noise have streams of their own, drawn alike for good and defective parts;
    the defect is put on top with another stream.

    Args:
        category: a key of PARTS.
        split: "train", "validation" or "test".
        defect: "good" or a key of VARIANTS.
        index: number within the folder.
        seed: of the whole tree.
        size: H = W in pixels.
    """
    kinds = sorted(VARIANTS)
    key = (seed, category, split, defect, index)
    order = index if defect == "good" else index * len(kinds) + kinds.index(defect)
    even = draw_even((seed, category, split, "good" if defect == "good" else "defective"), order, NUISANCES)
    part = PARTS[category](make_rng(*key, "part"), size, even["tone"], 0.94 + 0.12 * even["scale"])
    pose = draw_pose(make_rng(*key, "pose"), even, part.turn)
    light = draw_light(make_rng(*key, "light"), even)
    table = draw_table(make_rng(*key, "table"), even, size)
    view = clean = render(part, pose, light, table, size)
    mask, truth = np.zeros((size, size), bool), {}
    if defect != "good":
        variant = VARIANTS[defect][index % len(VARIANTS[defect])]
        # A place that the camera hardly sees is drawn again, so that every mask has a defect to show.
        for attempt in range(6):
            changed = add_defect(make_rng(*key, "defect", attempt), part, defect, variant)
            view = render(changed, pose, light, table, size)
            mask = find_mask(clean, view)
            if mask.sum() > 4e-4 * size * size and view.lit[mask].mean() > 0.4:
                break
        truth = {"variant": variant, **measure(clean, view, mask)}
    rgb = record_rgb(make_rng(*key, "camera"), even, view)
    xyz = record_xyz(make_rng(*key, "sensor"), even, view)
    return Scan(rgb, xyz, mask, truth)


def find_mask(clean: View, view: View) -> NDArray[np.bool_]:
    """Return the pixels whose depth or albedo the defect changed; slivers beside the main region are dropped."""
    from scipy.ndimage import binary_closing, label

    changed = (np.abs(view.depth - clean.depth) > DEPTH_STEP) | (np.abs(view.albedo - clean.albedo).max(-1) > COLOR_STEP)
    changed |= binary_closing(np.pad(changed, 2), np.ones((3, 3), bool))[2:-2, 2:-2]
    regions, count = label(changed, np.ones((3, 3), int))
    if count > 1:
        area = np.bincount(regions.ravel())
        area[0] = 0
        changed = (area >= 0.1 * area.max())[regions]
    return changed


def measure(clean: View, view: View, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Measure what a defect changed, against the noise and the natural texture around it.

    The rgb contrast is the root mean square change of colour inside the mask over the standard deviation of the same
    part without the defect, in and around the mask after removing its slow changes (at least 2 grey levels). The xyz
    contrast is the same of depth over the sensor's noise. Rendered without noise, with all other streams equal.

    Returns:
        rgb_contrast, xyz_contrast (standard deviations), rgb, xyz (bool), severity (equivalent diameter / image side).
    """
    from scipy.ndimage import uniform_filter

    size = len(mask)
    if not mask.any():
        return {"rgb_contrast": 0.0, "xyz_contrast": 0.0, "visible": {"rgb": False, "xyz": False}, "severity": 0.0}
    rows, columns = np.nonzero(mask)
    margin = size // 25
    window = np.s_[max(0, rows.min() - margin) : rows.max() + margin + 1, max(0, columns.min() - margin) : columns.max() + margin + 1]
    near, weight = clean.rgb[window], clean.on_part[window].astype(np.float32)[..., None]
    reach = (2 * margin + 1, 2 * margin + 1, 1)
    local = uniform_filter(near * weight, reach) / np.maximum(uniform_filter(weight, reach), 1e-3)
    spread = max(float(np.sqrt((((near - local) * weight) ** 2).mean() / max(float(weight.mean()), 1e-3))), 2 / 255)
    seen = mask & view.lit & clean.lit
    rgb = float(np.sqrt(((view.rgb - clean.rgb)[mask] ** 2).mean())) / spread
    depth = float(np.sqrt((((view.depth - clean.depth) / depth_noise(clean))[seen] ** 2).mean())) if seen.any() else 0.0
    return {
        "rgb_contrast": round(rgb, 2),
        "xyz_contrast": round(depth, 2),
        "visible": {"rgb": rgb >= RGB_SEEN, "xyz": depth >= XYZ_SEEN},
        "severity": round(float(2 * np.sqrt(mask.sum() / np.pi) / size), 4),
    }
