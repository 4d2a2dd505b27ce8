"""The nouns: `Sample`, what a camera saw, and `Prediction`, what a detector says of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from mm3dad.errors import DataError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Meta:
    """Where a sample comes from.

    Args:
        id: unique within a dataset and split, e.g. "test/hole/003".
        category: product class, e.g. "bagel".
        defect: name of the defect folder, "good" for a normal part, None where unknown.
        paths: role ("rgb", "xyz", "depth", "gt") -> file.
        intrinsics: (fx, fy, cx, cy) in pixels, where known.
        organised: False for a cloud without a grid (then H = 1).
    """

    id: str = "sample"
    category: str = "part"
    defect: str | None = None
    paths: dict[str, str] = field(default_factory=dict)
    intrinsics: tuple[float, float, float, float] | None = None
    organised: bool = True


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        return type(value).__name__
    return f"{tuple(shape)} {str(getattr(value, 'dtype', '')).removeprefix('torch.')}"


def _check(value: Tensor, name: str, shape: tuple[object, ...], dtype: str, cure: str) -> None:
    wanted = f"({', '.join(map(str, shape))})"
    fits = (
        hasattr(value, "dtype")
        and hasattr(value, "ndim")
        and value.ndim == len(shape)
        and all(got == n if isinstance(n, int) else got >= 1 for n, got in zip(shape, value.shape, strict=True))
        and str(value.dtype) == f"torch.{dtype}"
    )
    if not fits:
        raise ShapeError(f"{name} must be a torch tensor {wanted} {dtype}, got {_describe(value)}; {cure}")


@dataclass
class Sample:
    """One view of one part: an image, an organised point cloud, or both in register.

    A missing modality is None, never zeros. On construction, points that are NaN, Inf or (0, 0, 0)
    become `valid = False` and are set to zero.

    Args:
        rgb: (3, H, W) float32 in [0, 1], or None.
        xyz: (3, H, W) float32, metres, or None. A cloud without a grid is (3, 1, N).
        valid: (H, W) bool, where xyz holds a measured point; derived from xyz when None.
        mask: (H, W) bool, True on a defect; None where unknown.
        label: 0 normal, 1 defective, None unknown.
        meta: id, category, paths, intrinsics.

    Raises:
        ShapeError: an array of the wrong shape or dtype.
        DataError: both modalities missing, sizes that differ, values out of range.
    """

    rgb: Tensor | None = None
    xyz: Tensor | None = None
    valid: Tensor | None = None
    mask: Tensor | None = None
    label: int | None = None
    meta: Meta = field(default_factory=Meta)

    def __post_init__(self) -> None:
        if self.rgb is None and self.xyz is None:
            raise DataError(f"sample {self.meta.id!r} has neither rgb nor xyz; give at least one modality")
        if self.rgb is not None:
            _check(self.rgb, "rgb", (3, "H", "W"), "float32", "convert an 8-bit image with torch.from_numpy(a).permute(2, 0, 1) / 255")
            low, high = float(self.rgb.min()), float(self.rgb.max())
            if not (low >= 0.0 and high <= 1.0):
                cure = "divide 8-bit values by 255" if low == low else "replace NaN by a colour"
                raise DataError(f"rgb of {self.meta.id!r} must lie in [0, 1], got [{low:g}, {high:g}]; {cure}")
        if self.xyz is not None:
            _check(self.xyz, "xyz", (3, "H", "W"), "float32", "for depth images use mm3dad.data.organized.from_depth")
            measured = self.xyz.isfinite().all(0) & (self.xyz != 0).any(0)
            if self.valid is not None:
                _check(self.valid, "valid", tuple(self.xyz.shape[1:]), "bool", "leave it None to derive it from xyz")
                measured = measured & self.valid
            self.valid = measured
            self.xyz = self.xyz.where(measured, self.xyz.new_zeros(()))
        elif self.valid is not None:
            raise DataError(f"sample {self.meta.id!r} has `valid` but no xyz; leave `valid` None")
        if self.rgb is not None and self.xyz is not None and self.rgb.shape != self.xyz.shape:
            raise DataError(
                f"rgb and xyz of {self.meta.id!r} must have one size, got {tuple(self.rgb.shape[1:])} and "
                f"{tuple(self.xyz.shape[1:])}; resample one of them (data.organized.resize)"
            )
        if self.mask is not None:
            _check(self.mask, "mask", self.size, "bool", "threshold the ground truth at 0.5")
        if self.label not in (None, 0, 1):
            raise DataError(f"label of {self.meta.id!r} must be 0, 1 or None, got {self.label!r}")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        shape = self.rgb.shape if self.rgb is not None else self.xyz.shape  # type: ignore[union-attr]
        return int(shape[1]), int(shape[2])

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that are present, a subset of ("rgb", "xyz")."""
        return tuple(name for name in ("rgb", "xyz") if getattr(self, name) is not None)


class SampleSequence(Sequence[Sample], ABC):
    """Samples that are read each time they are asked for, so that a set needs no room. Subclasses fill `__len__` and `_read_at`."""

    @abstractmethod
    def _read_at(self, position: int) -> Sample:
        """Read one sample; raises IndexError beyond the end, and takes negative positions, as a list does."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self._read_at(position) for position in range(*index.indices(len(self)))]
        return self._read_at(index)


@dataclass
class Prediction:
    """What a detector says of one sample; higher is worse, and every raw score is >= 0.

    Args:
        score: image score.
        map: (H, W) float32 at the sample's resolution.
        parts: name -> array kept for inspection, e.g. "rgb_map" (H, W), "xyz_map" (H, W), "rgb_score" (), "rgb_gap" ()
            (distance from the most similar normal sample), "rgb_brightness" () (how it was recorded).
        threshold: image threshold the detector was calibrated to, None without one.
        is_anomaly: score > threshold, None without a threshold.
        calibrated: the score is on the scale of held-out normal samples.
        meta: the sample's.
        pixel_threshold: map value above which a pixel counts as defective, where `mm3dad calibrate` chose one.
        p_value: share of normal parts that score as high or higher, at most, where the model was calibrated.
        is_outside: the input lies outside what the model was fitted on, so that nothing says whether score, map and threshold still hold;
            None where the method does not say.
        outside_p_value: share of normal parts that lie as far outside or farther, at most; None where the method does not say.
    """

    score: float
    map: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    threshold: float | None = None
    is_anomaly: bool | None = None
    calibrated: bool = False
    meta: Meta = field(default_factory=Meta)
    pixel_threshold: float | None = None
    p_value: float | None = None
    is_outside: bool | None = None
    outside_p_value: float | None = None
