"""Layers of a scene: each a way to colour the points, computed when it is first looked at and the same on every face of the viewer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mm3dad.view.colors import TRUTH, Array, Picture, Scale, group_table, heat_table, shared_scale
from mm3dad.view.normals import mean_curvature, surface_normals
from mm3dad.view.scene import MAP_NAMES, Scene
from mm3dad.view.surface import height_table, shade_normals

ABOVE = (60, 235, 50)  # points above the threshold, where they are to be highlighted
PICKED = (255, 255, 255)  # points of the group that was clicked
PLAIN = (128, 130, 138)  # a point that says nothing


@dataclass(frozen=True)
class Layer:
    """One way to colour the points.

    Args:
        name: for people.
        kind: "color": (3, H, W) in [0, 1]; "scalar": (H, W) in [0, 1]; "score": (H, W) raw; "truth": (H, W) bool; "group": (H, W) int,
            -1 without a group.
        values: as the kind says; NaN where unmeasured.
        ends: what the first and the last colour of a scalar mean.
        scale: of the colours of a score.
    """

    name: str
    kind: Literal["color", "scalar", "score", "truth", "group"]
    values: Array
    ends: tuple[str, str] = ("", "")
    scale: Scale | None = None


class Layers(Mapping[str, Layer]):
    """The layers of a scene by name, in the order they are offered; light and grey base picture come with them.

    Args:
        scene: with a cloud.
        threshold: image threshold, which keeps good parts cold.
        scale: of the fused score, where several scenes are compared; its own when None.
    """

    def __init__(self, scene: Scene, threshold: float | None = None, scale: Scale | None = None) -> None:
        assert scene.xyz is not None
        self.scene, self._threshold, self._scale = scene, threshold, scale
        self._made: dict[str, Layer] = {}
        self._surface: tuple[Array, Array] | None = None
        self._makers: dict[str, Callable[[], Layer]] = {}
        if scene.rgb is not None:
            self._makers["RGB"] = lambda: Layer("RGB", "color", np.asarray(scene.rgb))
        self._makers["height"] = lambda: Layer("height", "scalar", scene.heights(), ("far", "near"))
        self._makers["normals"] = lambda: Layer("normals", "color", (self.normals + 1) / 2)
        self._makers["curvature"] = self._make_curvature
        for key in scene.maps:
            self._makers[MAP_NAMES.get(key, key)] = lambda key=key: self._make_score(key)  # type: ignore[misc]
        if scene.mask is not None:
            self._makers["ground truth"] = lambda: Layer("ground truth", "truth", np.asarray(scene.mask))
        if scene.groups is not None:
            self._makers["groups"] = lambda: Layer("groups", "group", np.asarray(scene.groups))

    def __getitem__(self, name: str) -> Layer:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    @property
    def first(self) -> str:
        """The layer that a viewer opens with: the fused score, else colour, else height."""
        score = next(iter(self.scene.maps), None)
        return MAP_NAMES.get(score, score) if score is not None else next(iter(self._makers))

    @property
    def normals(self) -> Array:
        """Normals (3, H, W) in picture axes."""
        return self._make_surface()[0]

    @property
    def light(self) -> Array:
        """How bright each point is under a lamp at the upper left, (H, W) in [0, 1]."""
        return self._make_surface()[1]

    def _make_surface(self) -> tuple[Array, Array]:
        if self._surface is None:
            assert self.scene.xyz is not None
            normals = surface_normals(self.scene.xyz, self.scene.valid)
            self._surface = normals, shade_normals(normals)
        return self._surface

    def _make_curvature(self) -> Layer:
        assert self.scene.xyz is not None
        values = mean_curvature(self.scene.xyz, self.scene.valid, self.normals)
        known = np.abs(values[np.isfinite(values)])
        reach = float(np.quantile(known[:: max(1, known.size // 20_000)], 0.98)) if known.size else 0.0
        return Layer("curvature", "scalar", np.clip(0.5 + values / max(2 * reach, 1e-9), 0, 1), ("hollow", "ridge"))

    def _make_score(self, key: str) -> Layer:
        values = self.scene.maps[key]
        is_fused = key == next(iter(self.scene.maps))
        scale = self._scale if is_fused and self._scale is not None else shared_scale([values], self._threshold if is_fused else None)
        return Layer(MAP_NAMES.get(key, key), "score", values, scale=scale)

    def paint(self, name: str, *, above: float | None = None, picked: int | None = None, beside: Sequence[int] = ()) -> Picture:
        """Colour the points by a layer, (H, W, 3) uint8.

        Args:
            name: of the layer.
            above: highlight the points whose fused score is higher.
            picked: highlight the points of this group.
            beside: brighten the points of these groups, its neighbours.
        """
        layer = self[name]
        if layer.kind == "color":
            painted = np.moveaxis(np.nan_to_num(layer.values), 0, -1) * np.float32(255)
        elif layer.kind == "truth":
            painted = np.where(layer.values[..., None], np.float32(TRUTH), np.float32(PLAIN)) * self._shade
        elif layer.kind == "group":
            table = np.concatenate([group_table(), np.array([PLAIN], np.uint8)])
            painted = table[np.where(layer.values < 0, -1, layer.values % len(group_table()))] * self._shade
        elif layer.kind == "scalar":
            painted = height_table()[_byte(np.nan_to_num(layer.values))] * self._shade
        else:
            # as in the pictures: cold points keep the greyed part, hot ones take the colour of their score
            assert layer.scale is not None
            unit = layer.scale.apply(layer.values)
            cover = 0.9 * np.minimum(1, 2.2 * unit)[..., None]
            painted = (cover * heat_table()[_byte(unit)] + (1 - cover) * self._grey()[..., None]) * self._shade
        if above is not None and self.scene.map is not None:
            painted = np.where((np.nan_to_num(self.scene.map, nan=-np.inf) > above)[..., None], np.float32(ABOVE) * self._shade, painted)
        if picked is not None and self.scene.groups is not None:
            painted = np.where(
                np.isin(self.scene.groups, np.asarray(beside))[..., None], 0.5 * painted + 0.5 * np.float32(PICKED) * self._shade, painted
            )
            painted = np.where((self.scene.groups == picked)[..., None], np.float32(PICKED) * self._shade, painted)
        return np.clip(painted, 0, 255).astype(np.uint8)

    @property
    def _shade(self) -> Array:
        """(H, W, 1), where it is asked for: a photograph has its own light, and a first look at it need not wait for normals."""
        return np.asarray((0.35 + 0.9 * self.light)[..., None], np.float32)

    def _grey(self) -> Array:
        if self.scene.rgb is None:
            return np.full(self.scene.size, 120, np.float32)
        return np.asarray(25 + 0.6 * 255 * np.tensordot(np.array([0.3, 0.59, 0.11], np.float32), self.scene.rgb, 1), np.float32)


def find_layer(layers: Layers, name: str) -> str:
    """Return the layer of this name, whatever its case.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    from mm3dad.errors import ConfigError, nearest_name

    found = {known.lower(): known for known in layers}.get(name.lower())
    if found is None:
        raise ConfigError(f"sample {layers.scene.meta.id!r} has no layer {name!r}; {nearest_name(name, layers)}")
    return found


def _byte(unit: Array) -> np.ndarray:
    return (unit * 255).round().astype(np.uint8)
