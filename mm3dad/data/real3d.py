"""Real3D-AD: clouds of whole objects without a grid and without colour, labelled point by point."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from mm3dad.data._dataset import Dataset
from mm3dad.data.clouds import read_cloud
from mm3dad.data.folder import parse_unit
from mm3dad.data.images import reading
from mm3dad.data.records import Record, confine, list_folders
from mm3dad.errors import DataError
from mm3dad.ops import nearest_neighbors
from mm3dad.types import Sample

if TYPE_CHECKING:
    from torch import Tensor

CATEGORIES = ("airplane", "car", "candybar", "chicken", "diamond", "duck", "fish", "gemstone", "seahorse", "shell", "starfish", "toffees")
SUFFIXES = (".pcd", ".ply")


class Real3D(Dataset):
    """One split of one category of Real3D-AD (Liu et al., NeurIPS 2023, datasets track), the PCD form.

    Training clouds are whole objects seen from all around, test clouds are seen from one side. The defect stands in the name of a test
    file ("12_bulge.pcd"), "good" where there is none; its points stand in the text of the same name below gt/, one line x, y, z, label
    each, in an order of its own, so a point takes the label of the nearest of them.

    Args:
        unit: metres per number; "mm" by default, as the objects were measured.
    """

    name: ClassVar[str] = "real3d"
    options: ClassVar[tuple[str, ...]] = ("unit",)
    layout: ClassVar[str] = "expected <root>/<category>/{train/*.pcd, test/<number>_<good|defect>.pcd, gt/<number>_<defect>.txt}"

    def __init__(self, root: str | Path, category: str, split: str, **options: Any) -> None:
        self.unit = parse_unit(options.get("unit")) or 0.001
        super().__init__(root, category, split, **options)

    @classmethod
    def categories(cls, root: str | Path) -> list[str]:
        """Return the categories below `root`: published order first, others sorted after them.

        Raises:
            DataError: there are none.
        """
        found = [folder.name for folder in list_folders(Path(root)) if (folder / "train").is_dir() or (folder / "test").is_dir()]
        if not found:
            raise DataError(f"expected categories in {root}, found none; {cls.layout}")
        return [name for name in CATEGORIES if name in found] + [name for name in found if name not in CATEGORIES]

    def _list_records(self) -> list[Record]:
        folder = confine(self.root / self.category / self.split, self.root)
        if not folder.is_dir():
            return []
        paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
        return [self._make_record(confine(path, self.root)) for path in paths]

    def _make_record(self, path: Path) -> Record:
        words = [word for word in path.stem.lower().split("_") if not word.isdecimal() and word not in ("cut", "copy")]
        is_good = self.split == "train" or "good" in path.stem.lower()
        defect = "good" if is_good else "_".join(words) or "defect"
        labels = self.root / self.category / "gt" / f"{path.stem}.txt"
        paths = {"cloud": str(path)}
        if not is_good and labels.is_file():
            paths["labels"] = str(confine(labels, self.root))
        return Record(f"{self.split}/{defect}/{path.stem}", self.category, defect, int(not is_good), paths)

    def load_points(self, record: Record, rgb: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
        """Return xyz (3, 1, N) metres, no colour, and that there is no grid."""
        xyz = read_cloud(record.paths["cloud"]).xyz
        return xyz.reshape(3, 1, -1) * self.unit, None, False

    def read(self, record: Record) -> Sample:
        """Read a cloud and, of a defective part, which of its points are the defect.

        Raises:
            DataError: a file is damaged or the unit is not metres.
        """
        sample = super().read(record)
        if "labels" in record.paths:
            assert sample.xyz is not None
            points, labels = read_labels(record.paths["labels"])
            near = nearest_neighbors(sample.xyz.flatten(1).T, points * self.unit, 1)[1][:, 0]
            sample.mask = labels[near][None]
        return sample


def read_labels(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read a text of x, y, z, label lines: points (N, 3) float32 in the file's unit, and defect (N,) bool.

    Raises:
        DataError: not such a text.
    """
    with reading(Path(path), "a text of x y z label"):
        table = np.loadtxt(path, dtype=np.float64, ndmin=2, delimiter="," if b"," in _first_line(path) else None)
    if table.shape[1] != 4 or not len(table) or not np.isfinite(table).all():
        raise DataError(f"{path} must hold lines of four numbers x, y, z and label, got {table.shape}; copy the published file")
    return torch.from_numpy(table[:, :3].astype(np.float32)), torch.from_numpy(table[:, 3] > 0.5)


def _first_line(path: str | Path) -> bytes:
    with Path(path).open("rb") as stream:
        return stream.readline(1 << 12)
