"""What `make results` and `make reproduce` evaluate: data, settings, options, and what a method cannot do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mm3dad.data.eyecandies import CATEGORIES as EYECANDIES
from mm3dad.data.mvtec3d import CATEGORIES as MVTEC3D
from mm3dad.data.synthetic import CATEGORIES as SYNTHETIC
from mm3dad.registry import METHODS as REGISTRY

ALL = ("full", "4shot", "2shot", "1shot", "zero")  # settings, in the page's order
SHORT = ("full", "4shot", "1shot", "zero")
SEEDS = (0, 1, 2)  # of a whole line; zero-shot methods run under the first
METHODS = (
    *("duet", "patchcore", "btf", "m3dm", "rad", "mrad", "cif", "cfm", "mentor3ad", "muscv2"),
    *("glfm", "das3d", "g2sf", "resad", "vote3deep", "radar"),
)


def shots_of(setting: str) -> int | None:
    """Return the number of normal samples of a setting; None for all, and for zero-shot methods, which use none."""
    return int(setting.removesuffix("shot")) if setting.endswith("shot") else None


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set of the results page.

    Args:
        name: of its option, its folder and its settings.
        kind: name of the dataset's kind.
        title: heading on the page.
        categories: all there are; fewer on the page are called a part.
        parts: which settings, of `ALL`.
        has_others: whether a method may be fitted on the other categories of the same root.
        note: said below the heading.
    """

    name: str
    kind: str
    title: str
    categories: tuple[str, ...]
    parts: tuple[str, ...]
    has_others: bool = True
    note: str = ""

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of its settings, e.g. "road-full"."""
        return tuple(f"{self.name}-{part}" for part in self.parts)


DATA = (
    Data("synthetic", "synthetic", "Synthetic parts", SYNTHETIC, SHORT, note="Made by `mm3dad prepare synthetic`, RGB and 3D."),
    Data("road", "mvtec3d", "Road", ("road",), SHORT, False, "Stereo recordings of a road with potholes, RGB and 3D."),
    Data(
        "tire", "mvtec3d", "MVTec 3D-AD, tire", ("tire",), SHORT, False,
        "RGB alone; 60 of its training and 58 of its test images, so that published figures compare only roughly.",
    ),
    Data("mvtec3d", "mvtec3d", "MVTec 3D-AD", MVTEC3D, ALL, note="Prepared: background plane removed, RGB and 3D."),
    Data("eyecandies", "eyecandies", "Eyecandies", EYECANDIES, ALL, note="Public test set, RGB and 3D."),
)  # fmt: skip
SETTINGS = tuple(name for data in DATA for name in data.settings)

# The published backbones and sizes under our names; what a paper leaves to the data set stands in DATA_OPTIONS.
PUBLISHED: dict[str, dict[str, Any]] = {
    "duet": {"backbone": "dino_vitb8"},
    "patchcore": {"backbone": "wide_resnet50_2", "layers": (2, 3), "reference": True},
    "btf": {"backbone": "wide_resnet50_2", "layers": (2, 3), "reference": True},
    "m3dm": {"backbone": "dino_vitb8", "points": "point_mae", "fineness": 2, "max_points": 50176, "fusion": True},
    "rad": {"backbone": "dinov3_vitb16", "layers": (3, 6, 9, 11), "image_size": 448},
    "mrad": {"backbone": "clip_vitl14_336", "image_size": 518, "reference": True},
    "cif": {"backbone": "dino_vitb8", "points": "point_mae", "point_side": 224, "reference": True},
    "cfm": {"backbone": "dino_vitb8", "points": "point_mae", "fineness": 8, "reference": True},
    "mentor3ad": {"backbone": "dino_vitb8", "points": "point_mae", "fineness": 2, "max_points": 50176},
    "muscv2": {"backbone": "dino_vitb8", "points": "point_mae", "reference": True},
    "glfm": {
        "points": "point_mae", "max_points": 50176, "centers": 1024, "group_size": 128, "epochs": 100, "steps": 100, "rate": 1e-4,
        "reference": True,
    },
    "g2sf": {
        "backbone": "dino_vitb8", "points": "point_mae", "fineness": 2, "max_points": 50176, "centers": 512, "hidden": 512,
        "defects": 800, "epochs": 80, "batch": 8192, "rate": 1.5e-4,
    },
    "resad": {"backbone": "wide_resnet50_2", "layers": (1, 2, 3), "codes": 1536, "blocks": 10, "position": 256},
}
DATA_OPTIONS: dict[tuple[str, str], dict[str, Any]] = {("cif", "eyecandies"): {"hyperedges": 8}}


def find_data(name: str) -> Data:
    """Return the data set called `name`."""
    return next(data for data in DATA if data.name == name)


def method_options(method: str, data: Data, published: bool, cache: Path) -> dict[str, Any]:
    """Return the options of a method on a data set: its defaults or the published ones, and a cache of features where it keeps one."""
    options = {**PUBLISHED.get(method, {}), **DATA_OPTIONS.get((method, data.name), {})} if published else {}
    known = {field.name for field in dataclasses.fields(REGISTRY.get(method).Config)}
    return {**options, **({"feature_cache": str(cache)} if "feature_cache" in known else {})}


def uses_normals(method: str) -> bool:
    """Say whether a method is fitted on normal samples of the part."""
    return bool({"one-class", "few-shot", "multi-class"} & set(REGISTRY.get(method).needs.settings))


def find_obstacle(method: str, setting: str) -> str | None:
    """Say why a method cannot do a setting ("full", "4shot", "zero"); None where it can."""
    if setting == "zero":
        return "learns from normal samples of the part, has none here" if uses_normals(method) else None
    return None if uses_normals(method) else "zero-shot: learns from no sample of the part, see that table"
