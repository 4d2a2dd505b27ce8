"""The registered synthesizers: a normal sample goes in, the same sample with one defect and its exact mask comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError
from mm3dad.synthesis.blend import Placement, alter_image, draw_texture, paste_colour, place_components
from mm3dad.synthesis.depth import keep_valid, move_along_rays, paste_depth
from mm3dad.synthesis.dual import alter_pair
from mm3dad.synthesis.masks import grow_mask, keep_components, perlin_mask, uniform
from mm3dad.synthesis.part import find_part
from mm3dad.synthesis.surface import (
    bulge_points,
    find_region,
    measure_normal,
    published_height,
    region_radius,
    stretch_points,
)
from mm3dad.types import Sample


def setting(default: Any, text: str) -> Any:
    """Declare a field of a synthesizer's `Config` with its help line."""
    return field(default=default, metadata={"help": text})


class Synthesizer(ABC):
    """Base of all synthesizers. Subclasses set `name`, `inputs` and `Config`, and fill `make`.

    Args:
        config: settings; the defaults when None.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]  # modalities a sample must have
    Config: ClassVar[type]
    learns: ClassVar[bool] = False  # from labelled defects, by `fit`, before it makes any

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @abstractmethod
    def make(self, sample: Sample, generator: torch.Generator, source: Sample | None = None) -> Sample:
        """Return the sample with one defect: label 1, the mask of exactly the pixels (or points) that were altered.

        Args:
            sample: normal.
            generator: of all draws; the same state gives the same defect bit for bit.
            source: another normal sample of the same size, for synthesizers that take pieces of one; the sample itself when None.
        Raises:
            DataError: a modality is missing, no valid point, or a source of another size.
        """

    def _check(self, sample: Sample) -> None:
        for name in self.inputs:
            if name not in sample.modalities:
                raise DataError(f"{self.name} needs {name}, which sample {sample.meta.id!r} lacks; take another synthesizer or complete it")

    def _finish(self, sample: Sample, mask: Tensor, **changed: Tensor | None) -> Sample:
        return replace(sample, **changed, mask=mask, label=1, meta=replace(sample.meta, defect=self.name))


@dataclass(frozen=True)
class StretchConfig:
    """Settings of `stretch`."""

    profile: Literal["cone", "bulge"] = setting("cone", "cone: GLFM's stretch, falling with the rank; bulge: smooth to the edge")
    height: float | None = setting(None, "metres; none: drawn in units of the region's radius, whatever the unit of the cloud")
    low: float = setting(0.15, "least height, in radii of the region")
    high: float = setting(1.0, "largest height, in radii of the region")
    reference: bool = setting(False, "GLFM's code: an unweighted seed in a weighted cloud, height from a squared distance; metres only")

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high or (self.height is not None and not self.height > 0):
            raise ConfigError(f"low, high and height must be above 0 and ordered, got {self.low}, {self.high} and {self.height}")
        if self.reference and self.profile != "cone":
            raise ConfigError(f"reference=true is the published cone, got profile={self.profile}; leave one of them out")


class Stretch(Synthesizer):
    """Pull a patch of the surface out or in (GLFM); RGB stays as it is."""

    name = "stretch"
    inputs = ("xyz",)
    Config = StretchConfig

    def make(self, sample: Sample, generator: torch.Generator, source: Sample | None = None) -> Sample:
        self._check(sample)
        assert sample.xyz is not None and sample.valid is not None
        part = find_part(sample)
        pixel = part.flatten().nonzero()[:, 0]
        if len(pixel) < 2:
            raise DataError(f"sample {sample.meta.id!r} must have at least 2 valid points to stretch, got {len(pixel)}; check the sensor")
        points, moved = self.alter(sample.xyz.flatten(1).T[pixel], generator)
        xyz = sample.xyz.flatten(1).clone()
        xyz[:, pixel] = points.T
        mask = torch.zeros_like(part).flatten()
        mask[pixel] = moved
        return self._finish(sample, mask.view_as(part), xyz=xyz.view_as(sample.xyz))

    def alter(self, points: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Stretch a cloud of at least two points (N, 3), metres; return it and the mask (N,) bool of the points that moved."""
        c = self.config
        count = int(torch.randint(max(2, len(points) // 100), max(2, len(points) // 50) + 1, (), generator=generator))
        seed = int(torch.randint(len(points), (), generator=generator))
        sign = 1.0 if bool(torch.rand((), generator=generator) < 101 / 201) else -1.0
        weights = (torch.randint(80, 121, (3,), generator=generator) / 100).tolist()
        share = c.low * (c.high / c.low) ** uniform(generator, 0.0, 1.0)
        normal = measure_normal(points, seed)
        region = find_region(points, seed, count, weights, published=c.reference)
        radius = region_radius(points, seed, region)
        if c.reference:
            height = published_height(points, count)
        else:
            height = share * radius if c.height is None else c.height
        if c.profile == "bulge":
            return bulge_points(points, seed, normal, max(radius, 1e-9), sign * height)
        moved = stretch_points(points, region, normal, sign * height)
        return moved, (moved != points).any(1)


@dataclass(frozen=True)
class CutPasteConfig:
    """Settings of `cutpaste`."""

    threshold: float = setting(0.4, "of the Perlin noise that cuts the pieces; higher cuts smaller ones")
    offset: float = setting(0.002, "most metres a pasted piece stands out or lies deeper")
    changes: int = setting(3, "random changes of the picture a piece is cut from")

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or not self.offset >= 2e-4 or not 0 <= self.changes <= 8:
            raise ConfigError(f"threshold must lie in (0, 1), offset be at least 0.0002 m, changes 0 to 8, got {self}")


class CutPaste(Synthesizer):
    """Paste pieces of another normal sample onto the part: its altered image, its relief, or both in register (G2SF)."""

    name = "cutpaste"
    inputs = ()
    Config = CutPasteConfig

    def make(self, sample: Sample, generator: torch.Generator, source: Sample | None = None) -> Sample:
        source = source or sample
        if source.size != sample.size or source.modalities != sample.modalities:
            raise DataError(
                f"source {source.meta.id!r} must have the size and the modalities of {sample.meta.id!r}, {sample.size} "
                f"{sample.modalities}, got {source.size} {source.modalities}; resize it (data.organized.resize)"
            )
        place = place_components(self._cut(find_part(source), generator), find_part(sample), generator)
        if sample.valid is not None and source.valid is not None:
            place = keep_valid(place, sample.valid, source.valid)
        if not len(place.target):
            middle = find_part(sample).flatten().nonzero()[:1, 0]
            place = Placement(middle, middle)
        changed: dict[str, Tensor | None] = {}
        opacity = uniform(generator, 0.5, 1.0)
        offset = uniform(generator, 2e-4, self.config.offset) * (1 if bool(torch.rand((), generator=generator) < 0.5) else -1)
        if sample.rgb is not None and source.rgb is not None:
            changed["rgb"] = paste_colour(sample.rgb, alter_image(source.rgb, generator, self.config.changes), place, opacity)
        if sample.xyz is not None and source.xyz is not None:
            changed["xyz"] = paste_depth(sample.xyz, source.xyz, place, offset)
        return self._finish(sample, place.to_mask(sample.size), **changed)

    def _cut(self, part: Tensor, generator: torch.Generator) -> Tensor:
        """Draw pieces of the published sizes, 100 to 1600 pixels of 512 x 512, dilated by one pixel of 224 x 224."""
        unit = part.numel() / 512**2
        wider = max(1, round(part.numel() ** 0.5 / 224))
        for _ in range(20):
            drawn = perlin_mask(part, generator, self.config.threshold, octaves=5)
            kept = keep_components(drawn, max(1, round(100 * unit)), max(1, round(1600 * unit)))
            if float(kept.sum()) >= 300 * unit:
                return grow_mask(kept, wider) & part
        return drawn


@dataclass(frozen=True)
class DualConfig:
    """Settings of `dual`."""

    low: float = setting(0.02, "least change of depth, as a share of the part's range of depth")
    high: float = setting(0.2, "largest change of depth, as a share of the part's range of depth")

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ConfigError(f"low and high must be above 0 and ordered, got {self.low} and {self.high}")


class DualModal(Synthesizer):
    """Hollows and bumps whose image changes with them (DAS3D, partly a reconstruction)."""

    name = "dual"
    inputs = ("rgb", "xyz")
    Config = DualConfig

    def make(self, sample: Sample, generator: torch.Generator, source: Sample | None = None) -> Sample:
        self._check(sample)
        assert sample.rgb is not None and sample.xyz is not None and sample.valid is not None
        part = find_part(sample)
        if not bool(part.any()):
            raise DataError(f"sample {sample.meta.id!r} has no valid point; check the sensor, the unit and the mask of missing points")
        depth = sample.xyz[2]
        # A flat plate has hardly any range of its own: a tenth of its width keeps defects visible.
        extent = sample.xyz[:, part].amax(1) - sample.xyz[:, part].amin(1)
        scale = max(float(extent[2]), 0.1 * float(extent.max()), 1e-6)
        texture = draw_texture(sample.size, generator)
        low, high = self.config.low * scale, self.config.high * scale
        pair = alter_pair(sample.rgb, depth, part, texture, generator, amplitude=(low, high))
        return self._finish(sample, pair.mask, rgb=pair.rgb, xyz=move_along_rays(sample.xyz, pair.depth))
