"""Eyecandies: the raw download (depth PNG + YAML + pose), turned into organised xyz in both published ways."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from mm3dad.data.clean import label_clusters
from mm3dad.data.images import read_array, read_depth, read_rgb, reading
from mm3dad.data.mvtec3d import MVTec3D
from mm3dad.data.records import Record, confine, list_folders
from mm3dad.errors import ConfigError, DataError, nearest_name
from mm3dad.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

CATEGORIES = (
    *("CandyCane", "ChocolateCookie", "ChocolatePraline", "Confetto", "GummyBear"),
    *("HazelnutTruffle", "LicoriceSandwich", "Lollipop", "Marshmallow", "PeppermintCandy"),
)
FOLDERS = {"train": "train", "validation": "val", "test": "test_public"}
MAX_TEXT = 1 << 16  # bytes; the published files have a few hundred
FOCAL = 711.11  # pixels, the same for every published image
LIGHT = {"m3dm": 4, "musc": 0}  # which of the six lit images a variant takes: the left spotlight, all spotlights
KEEP_FLOOR = ("GummyBear", "LicoriceSandwich", "Marshmallow")
FILES = {"depth": "depth.png", "info": "info_depth.yaml", "pose": "pose.txt"}


def read_depth_range(path: Path) -> tuple[float, float]:
    """Read (min, max) in metres from info_depth.yaml.

    Raises:
        DataError: not YAML, or the numbers are missing.
    """
    import yaml

    with reading(path, "a YAML file with normalization: {min, max}", MAX_TEXT):
        info = yaml.safe_load(path.read_text(encoding="utf-8"))
        low, high = float(info["normalization"]["min"]), float(info["normalization"]["max"])
        if not 0 <= low < high < float("inf"):
            raise DataError(f"{path} has depth range [{low}, {high}], expected 0 <= min < max; copy the published file")
        return low, high


def read_pose(path: Path) -> np.ndarray:
    """Read the (4, 4) float64 camera pose.

    Raises:
        DataError: not sixteen numbers, or a matrix that cannot be inverted.
    """
    with reading(path, "a text file with a 4 x 4 pose", MAX_TEXT):
        pose = np.loadtxt(path, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all() or abs(np.linalg.det(pose)) < 1e-12:
            raise DataError(f"{path} has shape {pose.shape}, expected an invertible 4 x 4 pose; copy the published file")
        return pose


def unproject(depth: np.ndarray, pose: np.ndarray, focal: float = FOCAL) -> np.ndarray:
    """Turn depth in metres (H, W) into world points (H, W, 3) float64: inv(pose) [(u-W/2) d/f, (v-H/2) d/f, d, 1]."""
    height, width = depth.shape
    u, v = np.meshgrid(np.arange(width) - width / 2, np.arange(height) - height / 2)
    camera = np.stack((u * depth / focal, v * depth / focal, depth), axis=-1)
    inverse = np.linalg.inv(pose)
    return camera @ inverse[:3, :3].T + inverse[:3, 3]


def convert_m3dm(points: np.ndarray) -> np.ndarray:
    """Take M3DM's and CFM's foreground: the box above the tilted floor, axes (x, z, y), a tenth of the size.

    Args:
        points: (H, W, 3) float64 world metres.

    Returns:
        (H, W, 3); missing points are (0, 0, 0), where the published script leaves x = 0 only.
    """
    middle = points.shape[1] // 2
    top, bottom = points[0, middle], points[-1, points.shape[1] - middle]
    run, rise = top[2] - bottom[2], top[1] - bottom[1]
    length = np.hypot(run, rise)
    if length == 0:
        raise DataError("the floor line of this depth image has no length; copy the published depth, info_depth and pose files")
    cosine, sine = run / length, rise / length
    x, y, z = np.moveaxis(points - (0, bottom[1], bottom[2]), -1, 0)
    missing = (cosine * y - sine * z > -0.02) | (sine * y + cosine * z > 1.8) | (np.abs(x) > 1)
    converted = points[..., [0, 2, 1]] * (0.1, -0.1, 0.1)
    converted[missing] = 0
    return converted


def convert_musc(points: np.ndarray, brightness: np.ndarray, category: str) -> np.ndarray:
    """Take MuSc-V2's foreground: floor cut off by height, then the cluster that holds the brightest pixel.

    Args:
        points: (H, W, 3) float64 world metres.
        brightness: (H, W), the largest channel of image_0.
        category: three categories keep their floor.

    Returns:
        (H, W, 3) world metres, (0, 0, 0) where dropped.
    """
    height = points[..., 1]
    span = height.max() - height.min()
    kept = np.ones(height.shape, bool)
    if category not in KEEP_FLOOR and span > 0:
        kept = (height - height.min()) / span < 0.99
    label = np.full(height.shape, -1)
    label[kept] = label_clusters(points[kept], eps=0.03, min_points=30)
    clusters = label.max() + 1
    if clusters:
        brightest = np.full(clusters, -np.inf)
        np.maximum.at(brightest, label[label >= 0], brightness[label >= 0])
        kept = label == brightest.argmax()
    return np.where(kept[..., None], points, 0)


class Eyecandies(MVTec3D):
    """One split of one Eyecandies category (Bonfiglioli et al., ACCV 2022): raw download, or a tree that `prepare` wrote.

    "test" is the public test set. Raw trees are converted on reading; `mm3dad prepare eyecandies` does it once.

    Args:
        variant: "m3dm" (left spotlight, scaled to 0.1) or "musc" (all spotlights, clustered); their numbers do not compare.
    """

    name: ClassVar[str] = "eyecandies"
    options: ClassVar[tuple[str, ...]] = ("variant",)
    layout: ClassVar[str] = "expected <root>/<category>/{train,val,test_public}/data/NNN_depth.png and its siblings"

    def __init__(self, root: str | Path, category: str, split: str, **options: Any) -> None:
        self.variant = str(options.get("variant", "m3dm"))
        if self.variant not in LIGHT:
            raise ConfigError(f"unknown variant {self.variant!r} of eyecandies; {nearest_name(self.variant, LIGHT)}")
        if "variant" in options:
            _check_prepared(Path(root), self.variant)
        super().__init__(root, category, split, **options)

    @classmethod
    def categories(cls, root: str | Path) -> list[str]:
        """Return the categories below `root`, published order first.

        Raises:
            DataError: there are none.
        """
        raw = [folder.name for folder in list_folders(Path(root)) if is_raw(folder)]
        found = raw or super().categories(root)
        return [name for name in CATEGORIES if name in found] + [name for name in found if name not in CATEGORIES]

    def _list_records(self) -> list[Record]:
        if not is_raw(self.root / self.category):
            return super()._list_records()
        folder = confine(self.root / self.category / FOLDERS[self.split] / "data", self.root)
        files = {path.name: path for path in folder.glob("*_*") if path.is_file()} if folder.is_dir() else {}
        roles = {"rgb": f"image_{LIGHT[self.variant]}.png", **FILES, "gt": "mask.png"}
        stems = sorted(
            {name.split("_")[0] for name in files if name.endswith((roles["rgb"], "_depth.png")) and name.split("_")[0].isdigit()}
        )
        records = []
        for stem in stems:
            paths = {
                role: str(confine(files[f"{stem}_{ending}"], self.root)) for role, ending in roles.items() if f"{stem}_{ending}" in files
            }
            defect = "good"
            if self.split == "test" and "gt" in paths:
                defect = "bad" if bool((read_array(paths["gt"], "a mask image") != 0).any()) else "good"
            if self.split != "test":
                paths.pop("gt", None)
            records.append(Record(f"{self.split}/{defect}/{stem}", self.category, defect, int(defect == "bad"), paths))
        return records

    def load_points(self, record: Record, rgb: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
        """Return xyz (3, H, W) metres, colour of the points or None, and whether there is a grid."""
        if "depth" not in record.paths:
            return super().load_points(record, rgb)
        lacking = [name for role, name in FILES.items() if role not in record.paths]
        if lacking:
            raise DataError(f"{record.paths['depth']} lacks {', '.join(lacking)} beside it; unpack the download again")
        depth = read_depth(record.paths["depth"]).numpy()
        low, high = read_depth_range(Path(record.paths["info"]))
        points = unproject(depth / 65535 * (high - low) + low, read_pose(Path(record.paths["pose"])))
        if self.variant == "m3dm":
            converted = convert_m3dm(points)
        else:
            if "rgb" not in record.paths:
                raise DataError(f"{record.paths['depth']} lacks image_0.png, which variant musc needs; unpack the download again")
            light = read_rgb(record.paths["rgb"]) if rgb is None else rgb
            converted = convert_musc(points, light.amax(0).numpy(), self.category)
        return torch.from_numpy(converted.transpose(2, 0, 1).astype(np.float32)), None, True


def is_raw(folder: Path) -> bool:
    """Whether `folder` is a category of the raw download."""
    return any((folder / split / "data").is_dir() for split in FOLDERS.values())


def _check_prepared(root: Path, variant: str) -> None:
    """Refuse a tree that was prepared as the other variant: foreground and light differ."""
    if (root / "manifest.json").is_file():
        manifest = read_json(root / "manifest.json")
        made = manifest.get("parameters", {}).get("variant", variant) if isinstance(manifest, dict) else variant
        if made != variant:
            raise DataError(f"{root} was prepared as variant {made}, not {variant}; prepare variant {variant} into another folder")
