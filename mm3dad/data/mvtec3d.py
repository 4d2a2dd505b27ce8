"""MVTec 3D-AD: the tree as published, trees that `mm3dad prepare` wrote, and the synthetic data of the same layout."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mm3dad.data._dataset import Dataset, Intrinsics
from mm3dad.data.records import Record, confine, list_folders, list_records
from mm3dad.errors import DataError
from mm3dad.files import read_json

CATEGORIES = ("bagel", "cable_gland", "carrot", "cookie", "dowel", "foam", "peach", "potato", "rope", "tire")


def read_camera(path: Path) -> Intrinsics:
    """Read camera_parameters.json: MVTec's focal length and cell size in metres, or fx and fy; principal point in pixels.

    Returns:
        (fx, fy, cx, cy) in pixels; lens distortion (kappa) is left out.

    Raises:
        DataError: not JSON, or a number is missing.
    """
    camera = read_json(path)
    try:
        if "fx" in camera:
            return float(camera["fx"]), float(camera["fy"]), float(camera["cx"]), float(camera["cy"])
        return camera["focus"] / camera["sx"], camera["focus"] / camera["sy"], float(camera["cx"]), float(camera["cy"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(
            f"{path} must hold the numbers focus, sx, sy, cx and cy, got {type(error).__name__} {error}; copy the published file"
        ) from error


class MVTec3D(Dataset):
    """One split of one category of MVTec 3D-AD (Bergmann et al., VISAPP 2022); RGB or xyz may be missing as a whole.

    `train` holds good parts only. Files are paired by their stem. `gt` is optional for good parts.
    """

    name: ClassVar[str] = "mvtec3d"

    @classmethod
    def categories(cls, root: str | Path) -> list[str]:
        """Return the categories below `root`: published order first, others sorted after them.

        Raises:
            DataError: there are none.
        """
        root = Path(root)
        found = [folder.name for folder in list_folders(root) if (folder / "train").is_dir() or (folder / "test").is_dir()]
        if not found:
            inside = (root / "train").is_dir() or (root / "test").is_dir()
            cure = f"{root} is a category itself, give its parent {root.parent}" if inside else cls.layout
            raise DataError(f"expected categories in {root}, found none; {cure}")
        return [name for name in CATEGORIES if name in found] + [name for name in found if name not in CATEGORIES]

    def _list_records(self) -> list[Record]:
        folder = confine(self.root / self.category / self.split, self.root)
        defects = [folder / "good"] if self.split == "train" else list_folders(folder)
        return [record for defect in defects for record in list_records(defect, self.split, self.category, self.root, ("rgb", "xyz", "gt"))]

    def _find_intrinsics(self) -> Intrinsics | None:
        path = self.root / self.category / "calibration" / "camera_parameters.json"
        return read_camera(path) if path.is_file() else None


class Synthetic(MVTec3D):
    """The embedded default: a tree that `mm3dad prepare synthetic` wrote."""

    name: ClassVar[str] = "synthetic"
