"""Why a place has its score: the group it belongs to, the normal patches it was matched with, its neighbours on the surface."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mm3dad.errors import DataError
from mm3dad.features.branches import Patches
from mm3dad.features.points import PointGroups
from mm3dad.memory import Bank
from mm3dad.ops import nearest_neighbors
from mm3dad.types import Prediction, Sample

Pixel = tuple[int, int]
SHOWN = 3  # matched rows of one patch
AROUND = 6  # neighbours on the surface
ROUGH = 224 * 224  # pixels on which groups are assigned; centres lie several of them apart


@dataclass(frozen=True)
class Match:
    """A normal patch that a patch was compared with.

    Args:
        id: the normal sample it came from, as it was called when the model was fitted.
        place: row and column of its centre, as shares of that sample's height and width; None for a cloud without a grid.
        distance: between the two patches, on the scale of the bank.
        held: the distance that the normal patch itself had to other normal samples.
    """

    id: str
    place: tuple[float, float] | None
    distance: float
    held: float


@dataclass(frozen=True)
class Neighbor:
    """A patch or group beside another: its number, the pixel of its centre and its score (after enhancement)."""

    patch: int
    place: Pixel
    score: float


@dataclass(frozen=True)
class Reason:
    """What one modality says of one place.

    Args:
        patch: number of the image patch or the point group.
        place: row and column of its centre, in pixels.
        members: (M,) int64, flat pixels of the patch or of the group's points.
        before: score of the patch before cross-modal enhancement.
        after: score after it; the same where enhancement is off.
        matches: the nearest normal patches, nearest first.
        neighbors: the patches next to it (of an image), or the groups that share most points with it, else the nearest.
    """

    patch: int
    place: Pixel
    members: Tensor
    before: float
    after: float
    matches: tuple[Match, ...]
    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True)
class Evidence:
    """What a method knows of one modality of one sample.

    Args:
        patches: as its branch described the sample.
        distances, rows: (P, K) of the matched bank rows.
        before, after: (P,) patch scores before and after enhancement.
        bank: the normal patches.
        cells: (h, w) of the grid that the places of patches and rows are on; h = 1 without a grid.
        groups: the point groups; None for an image.
    """

    patches: Patches
    distances: Tensor
    rows: Tensor
    before: Tensor
    after: Tensor
    bank: Bank
    cells: tuple[int, int]
    groups: PointGroups | None = None


@dataclass
class Explanation:
    """Why a sample has its scores; asked place by place, each answer takes some milliseconds.

    Args:
        sample: what was scored.
        prediction: its scores.
        evidence: per modality, in the order of `Sample.modalities`.
        maps: further (H, W) score maps worth a look, e.g. each modality before enhancement.
    """

    sample: Sample
    prediction: Prediction
    evidence: dict[str, Evidence]
    maps: dict[str, Tensor] = field(default_factory=dict)

    def at(self, row: int, column: int) -> dict[str, Reason]:
        """Explain one pixel (of a cloud without a grid: row 0, column = number of the point).

        Returns:
            A reason per modality that says something of this place; the points say nothing where none was measured.

        Raises:
            DataError: the place is outside the sample.
        """
        height, width = self.sample.size
        if not (0 <= row < height and 0 <= column < width):
            raise DataError(f"place ({row}, {column}) is outside sample {self.sample.meta.id!r} of {height} x {width} pixels")
        found = {}
        for name, evidence in self.evidence.items():
            patch = _patch_at(evidence, self.sample, row, column)
            if patch is not None:
                found[name] = _explain(evidence, self.sample.size, patch)
        return found

    def group_map(self) -> Tensor | None:
        """Return the point group of each pixel, (H, W) int64, -1 where nothing was measured; None without point groups."""
        evidence = next((one for one in self.evidence.values() if one.groups is not None), None)
        if evidence is None:
            return None
        assert self.sample.xyz is not None and self.sample.valid is not None and evidence.patches.centers is not None
        height, width = self.sample.size
        step = max(1, round((height * width / ROUGH) ** 0.5)) if height > 1 else 1
        xyz, valid = self.sample.xyz[:, ::step, ::step], self.sample.valid[::step, ::step]
        coarse = torch.full(valid.shape, -1)
        coarse[valid] = nearest_neighbors(xyz.permute(1, 2, 0)[valid], evidence.patches.centers, 1)[1][:, 0]
        full = coarse.repeat_interleave(step, 0).repeat_interleave(step, 1)[:height, :width]
        return full.where(self.sample.valid, -1)

    def peaks(self, count: int) -> list[Pixel]:
        """Return the places of the `count` highest scores of the map, each at least a twelfth of the sample away from the others."""
        heat = self.prediction.map.clone()
        height, width = heat.shape
        reach = max(1, round(max(height, width) / 12))
        places: list[Pixel] = []
        for _ in range(count):
            best = int(heat.argmax())
            row, column = best // width, best % width
            if not heat[row, column] > 0:
                break
            places.append((row, column))
            heat[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = 0
        return places


def _patch_at(evidence: Evidence, sample: Sample, row: int, column: int) -> int | None:
    if evidence.groups is None:
        (h, w), (height, width) = evidence.patches.grid, sample.size
        return row * h // height * w + column * w // width
    assert sample.xyz is not None and sample.valid is not None and evidence.patches.centers is not None
    if not bool(sample.valid[row, column]):
        return None
    return int(nearest_neighbors(sample.xyz[:, row, column][None], evidence.patches.centers, 1)[1])


def _explain(evidence: Evidence, size: tuple[int, int], patch: int) -> Reason:
    around = _beside(evidence.patches.grid, patch) if evidence.groups is None else _overlapping(evidence.groups, patch)
    return Reason(
        patch=patch,
        place=_center(evidence, size, patch),
        members=_members(evidence, size, patch),
        before=float(evidence.before[patch]),
        after=float(evidence.after[patch]),
        matches=_matches(evidence, patch),
        neighbors=tuple(Neighbor(one, _center(evidence, size, one), float(evidence.after[one])) for one in around),
    )


def _matches(evidence: Evidence, patch: int) -> tuple[Match, ...]:
    bank, found = evidence.bank, []
    nearest = evidence.distances[patch].topk(min(SHOWN, evidence.distances.shape[1]), largest=False)
    for distance, k in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True):
        row = int(evidence.rows[patch, k])
        place = None
        if evidence.cells[0] > 1:
            down, right = ((int(bank.place[row, axis]) + 0.5) / evidence.cells[axis] for axis in (0, 1))
            place = down, right
        found.append(Match(bank.identity_of(row), place, distance, float(bank.held[row])))
    return tuple(found)


def _members(evidence: Evidence, size: tuple[int, int], patch: int) -> Tensor:
    if evidence.groups is not None:
        return evidence.groups.pixel[evidence.groups.index[patch]]
    (h, w), (height, width) = evidence.patches.grid, size
    rows = (torch.arange(height) * h // height == patch // w).nonzero()[:, 0]
    columns = (torch.arange(width) * w // width == patch % w).nonzero()[:, 0]
    return (rows[:, None] * width + columns[None]).flatten()


def _center(evidence: Evidence, size: tuple[int, int], patch: int) -> Pixel:
    if evidence.groups is not None:
        pixel = int(evidence.groups.pixel[evidence.groups.center[patch]])
        return pixel // size[1], pixel % size[1]
    (h, w), (height, width) = evidence.patches.grid, size
    return (2 * (patch // w) + 1) * height // (2 * h), (2 * (patch % w) + 1) * width // (2 * w)


def _beside(grid: tuple[int, int], patch: int) -> list[int]:
    row, column = divmod(patch, grid[1])
    places = ((row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right)
    return [y * grid[1] + x for y, x in places if 0 <= y < grid[0] and 0 <= x < grid[1]]


def _overlapping(groups: PointGroups, patch: int) -> list[int]:
    """Groups that share most points with this one: their members follow the surface, so these are neighbours on it.

    Where groups are too small to share any, the nearest centres.
    """
    shared = torch.isin(groups.index, groups.index[patch]).sum(1)
    shared[patch] = 0
    count = min(AROUND, len(shared) - 1)
    if not bool(shared.any()):
        center = groups.points[groups.center]
        nearest = nearest_neighbors(center[patch][None], center, count + 1)[1][0].tolist()
        return [one for one in nearest if one != patch][:count]
    return [one for one in shared.topk(count).indices.tolist() if shared[one] > 0]
