"""`Session`: what is looked at now, behind browser and window: entry, layer, threshold, the clicked place, two results side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm3dad.errors import DataError
from mm3dad.view.browse import Entry, filter_entries, pair_entries
from mm3dad.view.colors import Array, Picture
from mm3dad.view.layers import Layer, Layers, find_layer
from mm3dad.view.normals import toward_viewer
from mm3dad.view.why import Why

GAP = 2.2  # between two clouds side by side, in radii


@dataclass
class Side:
    """One result of the sample that is looked at.

    Args:
        entry: where it comes from.
        layers: of its scene.
        points: (N, 3) float32 to the viewer's axes: right, up, toward the sensor; centred, the part about 1 in radius.
        pixel: (N,) int64, each point's place in the flattened grid.
        why: the explanation of the clicked place.
        picked: number of the clicked point, None before a click.
    """

    entry: Entry
    layers: Layers
    points: Array
    pixel: NDArray[np.int64]
    why: Why | None = None
    picked: int | None = None

    @property
    def spacing(self) -> float:
        """Distance between neighbouring points."""
        low, high = np.quantile(self.points[:: max(1, len(self.points) // 20_000)], [0.01, 0.99], axis=0)
        return float(np.sqrt(max(float(np.prod((high - low)[:2])), 1e-12) / len(self.points)))

    def thin(self, limit: int) -> NDArray[np.int64]:
        """Return the numbers of at most about `limit` points, evenly spread: those of every n-th row and column."""
        step = math.ceil(math.sqrt(len(self.points) / limit))
        row, column = np.divmod(self.pixel, self.layers.scene.size[1])
        kept = np.flatnonzero((row % step == step // 2) & (column % step == step // 2)) if self.layers.scene.organised else np.empty(0)
        return kept if kept.size else np.arange(0, len(self.points), step * step)

    def place(self, point: int) -> tuple[int, int]:
        """Return row and column of a point."""
        row, column = divmod(int(self.pixel[point]), self.layers.scene.size[1])
        return row, column

    def describe(self, point: int) -> list[tuple[str, str]]:
        """Return what is known of a point: place, coordinates, scores, truth, group."""
        row, column = self.place(point)
        scene = self.layers.scene
        assert scene.xyz is not None
        facts = [("pixel", f"row {row}, column {column}")] if scene.organised else [("point", str(column))]
        facts.append(("x, y, z in mm", ", ".join(f"{1000 * float(value):.2f}" for value in scene.xyz[:, row, column])))
        facts += [(name, f"{float(layer.values[row, column]):.3g}") for name, layer in self._scores()]
        if scene.mask is not None:
            facts.append(("ground truth", "defect" if scene.mask[row, column] else "good"))
        if scene.groups is not None and scene.groups[row, column] >= 0:
            facts.append(("group", str(int(scene.groups[row, column]))))
        return facts

    def _scores(self) -> list[tuple[str, Layer]]:
        return [(name, self.layers[name]) for name in self.layers if self.layers[name].kind == "score"]


class Session:
    """The state of a viewer; it knows nothing of windows and browsers.

    Args:
        entries: what can be looked at, >= 1.
        first: the entry to begin with; the first when None.
        others: results of the same samples by another model or setting, shown beside.
        layer: to begin with; the fused score, else colour, when None.

    Raises:
        DataError: `others` has no sample in common.
    """

    def __init__(
        self, entries: Sequence[Entry], first: Entry | None = None, others: Sequence[Entry] | None = None, layer: str | None = None
    ) -> None:
        self.all, self.shown = list(entries), list(entries)
        self.paired = {} if others is None else pair_entries(entries, others)
        self.index = 0 if first is None else self.shown.index(first)
        self.layer, self.highlight = layer, False
        self.threshold: float | None = None
        self.sides: list[Side] = []

    @property
    def entry(self) -> Entry:
        """What is looked at."""
        return self.shown[self.index]

    @property
    def layer_names(self) -> list[str]:
        """Layers of the current sample."""
        return list(self.sides[0].layers)

    def layer_of(self, side: Side) -> str:
        """Return the layer that a side shows: the chosen one, or its first where it has none of that name."""
        return self.layer if self.layer is not None and self.layer in side.layers else side.layers.first

    def move(self, step: int) -> None:
        """Go on by `step` entries, round at the ends."""
        self.index = (self.index + step) % len(self.shown)

    def filter(self, *, defect: str | None = None, kind: str | None = None, least: float | None = None) -> None:
        """Show only the entries that fit; the current one stays where it does.

        Raises:
            DataError: none fits; all stays as it was.
        """
        found = filter_entries(self.all, defect=defect, kind=kind, least=least)
        if not found:
            raise DataError("no sample fits this filter; widen it")
        current = self.entry
        self.shown = found
        self.index = found.index(current) if current in found else 0

    def open(self, quick: bool = False) -> list[Side]:
        """Read the current entry, and the other result of it where two are compared.

        Args:
            quick: only what needs no model, so that something is there to look at while it runs.

        Raises:
            ConfigError: the chosen layer does not exist.
            DataError: a file cannot be read, or has no measured point.
        """
        for side in self.sides:
            if side.entry is not self.entry and side.entry is not self.paired.get((self.entry.category, self.entry.id)):
                side.entry.close()
        other = self.paired.get((self.entry.category, self.entry.id))
        self.sides = [self._make_side(entry, quick) for entry in (self.entry, other) if entry is not None]
        self.threshold = next((one.entry.pixel_threshold for one in self.sides if one.entry.pixel_threshold is not None), None)
        if self.layer is not None and not quick:
            self.layer = find_layer(self.sides[0].layers, self.layer)
        return self.sides

    def _make_side(self, entry: Entry, quick: bool) -> Side:
        scene = entry.preview() if quick else entry.open()
        if scene.xyz is None or not scene.valid.any():
            raise DataError(f"sample {entry.id!r} has no measured point, so there is no 3D view; write a still picture instead (--png)")
        pixel = np.flatnonzero(scene.valid)
        up_y, up_z = toward_viewer(scene.xyz, scene.valid)
        points = scene.xyz.reshape(3, -1)[:, pixel].T * np.array([1, up_y, up_z], np.float32)
        low, high = np.quantile(points[:: max(1, len(points) // 20_000)], [0.01, 0.99], axis=0)
        points = (points - (low + high) / 2) / max(float(np.linalg.norm(high - low)) / 2, 1e-9)
        return Side(entry, Layers(scene, entry.threshold), np.ascontiguousarray(points, np.float32), pixel)

    def colors(self, side: Side) -> Picture:
        """Return the colour of each point, (N, 3) uint8."""
        groups, picked = side.layers.scene.groups, None
        if groups is not None and side.picked is not None:
            picked = int(groups.flat[side.pixel[side.picked]])
        above, beside = self.threshold if self.highlight else None, () if side.why is None else side.why.beside
        painted = side.layers.paint(self.layer_of(side), above=above, picked=picked, beside=beside)
        return np.ascontiguousarray(painted.reshape(-1, 3)[side.pixel])

    def shift(self, number: int) -> float:
        """Return how far to the right a side stands."""
        return GAP * (number - (len(self.sides) - 1) / 2)

    def pick(self, origin: Sequence[float], direction: Sequence[float]) -> tuple[int, int] | None:
        """Find what a ray meets first: (side, number of the point), None where it misses.

        Args:
            origin, direction: (3,) of the ray, in the viewer's axes.
        """
        best, found = np.inf, None
        along = np.asarray(direction, np.float32) / max(float(np.linalg.norm(direction)), 1e-12)
        for number, side in enumerate(self.sides):
            start = np.asarray(origin, np.float32) - np.array([self.shift(number), 0, 0], np.float32)
            offset = side.points - start
            depth = offset @ along
            gap = np.einsum("ij,ij->i", offset, offset) - depth**2
            near = np.flatnonzero((gap <= (1.5 * side.spacing) ** 2) & (depth > 0))
            if near.size:
                point = int(near[depth[near].argmin()])
                if depth[point] < best:
                    best, found = float(depth[point]), (number, point)
        return found

    def choose(self, number: int, point: int) -> Side:
        """Mark a point, in both results, and explain it where there is a model."""
        place = self.sides[number].place(point)
        for side in self.sides:
            hit = np.flatnonzero(side.pixel == place[0] * side.layers.scene.size[1] + place[1])
            side.picked = int(hit[0]) if hit.size else None
            side.why = side.entry.explain(*place) if side.picked is not None else None
        return self.sides[number]
