"""A user's own scans: RGB, organised xyz, depth images with intrinsics, or PLY / PCD clouds, in folders or alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm3dad.data._dataset import Dataset, Intrinsics
from mm3dad.data.clouds import read_cloud
from mm3dad.data.images import read_depth, read_xyz
from mm3dad.data.mvtec3d import read_camera
from mm3dad.data.organized import from_depth
from mm3dad.data.records import Record, confine, list_folders, list_records
from mm3dad.errors import ConfigError, DataError
from mm3dad.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

ROLES = ("rgb", "xyz", "depth", "cloud", "gt")
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "um": 1e-6}


def parse_unit(value: float | str | None) -> float | None:
    """Return metres per number: 0.001, "0.001" and "mm" mean the same.

    Raises:
        ConfigError: not positive, or an unknown word.
    """
    if value is None:
        return None
    try:
        unit = UNITS[value] if isinstance(value, str) and value in UNITS else float(value)
    except (TypeError, ValueError):
        unit = 0.0
    if not 0 < unit < float("inf"):
        raise ConfigError(f"unit must be positive metres per number or one of {', '.join(UNITS)}, got {value!r}; use 0.001 for millimetres")
    return unit


def read_intrinsics(path: Path) -> tuple[Intrinsics, float | None]:
    """Read intrinsics.json {"fx", "fy", "cx", "cy", "unit"}: pixels, and metres per depth count (or "mm").

    Raises:
        DataError: not JSON, or a number is missing.
    """
    camera = read_json(path)
    try:
        fx, fy, cx, cy = (float(camera[key]) for key in ("fx", "fy", "cx", "cy"))
        return (fx, fy, cx, cy), parse_unit(camera.get("unit"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = error if isinstance(error, ConfigError) else f"got {type(error).__name__} {error}"
        raise DataError(f"{path} must hold the numbers fx, fy, cx, cy and unit, {reason}; write them from the camera's data") from error


def read_points(
    paths: dict[str, str], rgb: Tensor | None, intrinsics: Intrinsics | None, unit: float | None, depth_unit: float | None
) -> tuple[Tensor, Tensor | None, bool]:
    """Read the points of a sample from xyz, depth or cloud: xyz (3, H, W) metres, colour or None, and whether there is a grid."""
    if "xyz" in paths:
        return read_xyz(paths["xyz"], unit or 1.0), None, True
    if "depth" in paths:
        if intrinsics is None:
            raise DataError(
                f"{paths['depth']} is a depth image and needs intrinsics; write intrinsics.json (fx, fy, cx, cy, unit) into the root"
            )
        metres = unit or depth_unit
        if metres is None:
            raise DataError(f'{paths["depth"]} has no unit; add "unit": 0.001 (metres per count) to intrinsics.json or pass unit=')
        return from_depth(read_depth(paths["depth"]), intrinsics, metres), None, True
    cloud = read_cloud(paths["cloud"])
    xyz, colour, organised = cloud.xyz * (unit or 1.0), cloud.rgb, cloud.organised
    if rgb is not None and not organised:
        size = tuple(rgb.shape[1:])
        if xyz.shape[2] != size[0] * size[1]:
            raise DataError(
                f"{paths['cloud']} has {xyz.shape[2]} points without a grid, {paths['rgb']} has {size}; "
                "export an organised cloud (PCD with WIDTH and HEIGHT, or an xyz TIFF), or leave one of the two out"
            )
        # cameras write organised clouds as a PLY of H * W points, row by row
        xyz, organised = xyz.reshape(3, *size), True
    return xyz, colour, organised


class Folder(Dataset):
    """One split of a user's own data.

    Layout: <root>/[<category>/]{train,validation,test}/<good|defect>/{rgb,xyz|depth|cloud,gt}/stem.*

    Without a category level the root's own name is the category ("." works too). Depth images need
    `intrinsics.json` in the category or the root.

    Args:
        unit: metres per number of xyz, depth or cloud files (0.001 or "mm"); for depth it overrides intrinsics.json.
    """

    name: ClassVar[str] = "folder"
    options: ClassVar[tuple[str, ...]] = ("unit",)
    layout: ClassVar[str] = "expected <root>/[<category>/]{train,validation,test}/<good|defect>/{rgb,xyz|depth|cloud,gt}"

    def __init__(self, root: str | Path, category: str = ".", split: str = "train", **options: Any) -> None:
        self.unit = parse_unit(options.get("unit"))
        self._depth_unit: float | None = None
        super().__init__(root, category, split, **options)

    @property
    def folder(self) -> Path:
        """The category's folder: the root itself when there is no category level."""
        return self.root if _holds_splits(self.root) else self.root / self.category

    @classmethod
    def categories(cls, root: str | Path) -> list[str]:
        """Return the categories below `root`, sorted; the root's own name when it holds train/ or test/ itself.

        Raises:
            DataError: there are none.
        """
        root = Path(root)
        if _holds_splits(root):
            return [root.resolve().name]
        found = [folder.name for folder in list_folders(root) if _holds_splits(folder)]
        if not found:
            raise DataError(f"expected categories or train/ and test/ in {root}, found none; {cls.layout}")
        return found

    def _resolve_category(self, category: str) -> str:
        return super()._resolve_category(self.root.resolve().name if category == "." and _holds_splits(self.root) else category)

    def _list_records(self) -> list[Record]:
        folder = confine(self.folder / self.split, self.root)
        defects = [folder / "good"] if self.split == "train" else list_folders(folder)
        return [record for defect in defects for record in list_records(defect, self.split, self.category, self.root, ROLES)]

    def _find_intrinsics(self) -> Intrinsics | None:
        camera, self._depth_unit = find_intrinsics([self.folder, self.root])
        return camera

    def load_points(self, record: Record, rgb: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
        """Return xyz (3, H, W) metres, colour of the points or None, and whether there is a grid."""
        return read_points(record.paths, rgb, self.intrinsics, self.unit, self._depth_unit)


def _holds_splits(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def find_intrinsics(folders: Sequence[Path]) -> tuple[Intrinsics | None, float | None]:
    """Return the first camera description among `folders`: intrinsics.json, or MVTec's camera_parameters.json."""
    for folder in folders:
        if (folder / "intrinsics.json").is_file():
            return read_intrinsics(folder / "intrinsics.json")
        if (folder / "calibration" / "camera_parameters.json").is_file():
            return read_camera(folder / "calibration" / "camera_parameters.json"), None
    return None, None
