"""`Scene`: one sample with its score maps on one grid, in numpy; every picture and page is drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm3dad.errors import ShapeError
from mm3dad.types import Meta, Prediction
from mm3dad.view.colors import Array, Picture, Scale, heat_picture, outline_mask, overlay_heat, to_picture
from mm3dad.view.surface import height_picture, height_values

if TYPE_CHECKING:
    from mm3dad.methods.explanation import Explanation
    from mm3dad.types import Sample

MAP_NAMES = {  # in the order they are offered
    "map": "score",
    "rgb_map": "score, RGB",
    "xyz_map": "score, 3D",
    "rgb_before_map": "score, RGB, not enhanced",
    "xyz_before_map": "score, 3D, not enhanced",
}


@dataclass(frozen=True)
class Scene:
    """What there is to see of one sample.

    Args:
        size: (H, W); H = 1 for a cloud without a grid.
        rgb: (3, H, W) float32 in [0, 1], or None.
        xyz: (3, H, W) float32, metres, or None.
        valid: (H, W) bool; all False without xyz.
        mask: (H, W) bool ground truth, or None.
        maps: name -> (H, W) float32; "map" is the fused score and comes first.
        groups: (H, W) int, number of each point's group, -1 without one; None where no model said.
        organised: the arrays are pictures, not a list of points.
        meta: the sample's.
    """

    size: tuple[int, int]
    rgb: Array | None
    xyz: Array | None
    valid: NDArray[np.bool_]
    mask: NDArray[np.bool_] | None
    maps: dict[str, Array] = field(default_factory=dict)
    groups: NDArray[np.int64] | None = None
    organised: bool = True
    meta: Meta = field(default_factory=Meta)

    @property
    def map(self) -> Array | None:
        """The fused score map, or the only one there is."""
        return next(iter(self.maps.values()), None)

    def base_picture(self) -> Picture:
        """Return the picture that heat is laid over: RGB, else the shaded height."""
        if self.rgb is not None:
            return to_picture(self.rgb)
        assert self.xyz is not None
        return height_picture(self.xyz, self.valid)

    def base_colors(self) -> Array:
        """Return (3, H, W) float32 in [0, 1]: the base picture as colours of the points."""
        return as_colors(self.base_picture())

    def heat(self, scale: Scale, strength: float = 0.85) -> Picture:
        """Return the score map over the greyed base picture, or alone where points have no picture."""
        assert self.map is not None
        if not self.organised and self.rgb is None:
            return heat_picture(self.map, scale)
        return overlay_heat(self.base_picture(), self.map, scale, strength)

    def truth(self) -> Picture:
        """Return the base picture with the ground truth: outlined on a grid, painted on a list of points."""
        picture = self.base_picture()
        if self.mask is None:
            return picture
        if not self.organised:
            picture[self.mask] = outline_mask(picture, self.mask)[self.mask] // 4 + np.array((0, 150, 191), np.uint8)
            return picture
        return outline_mask(picture, self.mask, width=max(1, round(max(self.size) / 160)))

    def heights(self) -> Array:
        """Return the height over a fitted plane (H, W) in [0, 1], NaN where unmeasured."""
        assert self.xyz is not None
        return height_values(self.xyz, self.valid)

    def take(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Scene:
        """Return the scene of some rows and columns of the grid."""

        def pick(values: Any) -> Any:
            return None if values is None else np.ascontiguousarray(values[..., rows[:, None], columns[None]])

        return replace(
            self,
            size=(len(rows), len(columns)),
            rgb=pick(self.rgb),
            xyz=pick(self.xyz),
            valid=pick(self.valid),
            mask=pick(self.mask),
            maps={name: pick(values) for name, values in self.maps.items()},
            groups=pick(self.groups),
        )


def as_colors(picture: Picture) -> Array:
    """Turn (H, W, 3) uint8 into (3, H, W) float32 in [0, 1]."""
    return np.asarray(np.moveaxis(picture, -1, 0), np.float32) / np.float32(255)


def resize_map(values: Any, size: tuple[int, int], name: str = "map") -> Array:
    """Return a map (h, w) as (H, W) float32, bilinear; maps are often kept at the size of the evaluation.

    Raises:
        ShapeError: not a map, or a list of points of another length.
    """
    from PIL import Image

    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, np.float32)
    if array.ndim != 2 or array.size == 0:
        raise ShapeError(f"{name} must be (H, W), got {array.shape}; give one score per pixel")
    if array.shape == size:
        return array
    if 1 in size or 1 in array.shape:
        raise ShapeError(f"{name} has size {array.shape}, the sample {size}; a cloud without a grid needs one score per point")
    holes = ~np.isfinite(array)
    resized = np.asarray(Image.fromarray(np.where(holes, 0, array)).resize(size[::-1], Image.Resampling.BILINEAR), np.float32)
    if holes.any():
        gone = Image.fromarray(holes.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
        resized = np.where(np.asarray(gone) > 0, np.float32(np.nan), resized)
    return resized


def join_maps(given: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Array]:
    """Return maps by name, resized to (H, W), in the order they are offered.

    Raises:
        ShapeError: a map that does not fit.
    """
    ordered = [name for name in MAP_NAMES if name in given] + [name for name in given if name not in MAP_NAMES]
    return {name: resize_map(given[name], size, name) for name in ordered}


def explained_scene(explanation: Explanation) -> Scene:
    """Join a sample, its scores and its groups, as the explanation of a model has them."""
    before = {f"{name}_before_map": values for name, values in explanation.maps.items()}
    prediction = explanation.prediction
    maps = {"map": prediction.map, **{name: part for name, part in prediction.parts.items() if name.endswith("_map")}, **before}
    groups = explanation.group_map()
    return replace(build_scene(explanation.sample, maps), groups=None if groups is None else groups.numpy())


def build_scene(sample: Sample, prediction: Any = None, *, longest: int | None = None) -> Scene:
    """Join a sample and its maps.

    Args:
        sample: what the camera saw.
        prediction: a `Prediction`, one (h, w) map, a mapping of names to maps, or None; maps are resized to the sample.
        longest: take every n-th row and column so that the longer side is at most this, for small pictures.

    Raises:
        ShapeError: a map that does not fit the sample.
    """
    if prediction is None:
        given: dict[str, Any] = {}
    elif isinstance(prediction, Prediction):
        given = {"map": prediction.map, **{k: v for k, v in prediction.parts.items() if k.endswith("_map") and v.ndim == 2}}
    elif isinstance(prediction, Mapping):
        given = dict(prediction)
    else:
        given = {"map": prediction}
    organised = sample.meta.organised and sample.size[0] > 1
    step = 1 if longest is None or not organised else max(1, -(-max(sample.size) // longest))

    def take(value: Any) -> Any:
        return None if value is None else value.detach().cpu().numpy()[..., ::step, ::step]

    maps = {name: values[::step, ::step] for name, values in join_maps(given, sample.size).items()}
    rgb, xyz, mask = take(sample.rgb), take(sample.xyz), take(sample.mask)
    size = (rgb if rgb is not None else xyz).shape[1:]
    valid = take(sample.valid) if sample.valid is not None else np.zeros(size, bool)
    return Scene(size, rgb, xyz, valid, mask, maps, organised=organised, meta=sample.meta)
