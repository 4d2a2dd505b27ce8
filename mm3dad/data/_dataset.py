"""The contract of all datasets: a sorted list of records, read into a `Sample` on access."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm3dad.data.images import read_mask, read_rgb, read_xyz
from mm3dad.data.organized import check_extent
from mm3dad.data.records import MODALITIES, SPLITS, Record, name_points, parse_modalities
from mm3dad.errors import ConfigError, DataError, nearest_name
from mm3dad.types import Meta, Sample, SampleSequence

if TYPE_CHECKING:
    from torch import Tensor

Intrinsics = tuple[float, float, float, float]


class Dataset(SampleSequence):
    """One split of one category; files are listed now and read on access.

    A subclass lists its records and may read points in its own way.

    Args:
        root: folder of the whole dataset.
        category: product class.
        split: "train", "validation" or "test".
        modalities: read only these; by default all that a sample has.
        strict: refuse an incomplete split; the doctor opens it all the same, to say all that is wrong.
        options: a subclass's own.

    Raises:
        DataError: the tree is missing, a category without training images, a training folder with a modality partly missing.
        ConfigError: an unknown split, modality or option.
    """

    name: ClassVar[str] = "dataset"
    options: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[str] = "expected <root>/<category>/{train,validation,test}/<good|defect>/{rgb,xyz,gt}"

    def __init__(
        self,
        root: str | Path,
        category: str,
        split: str,
        *,
        modalities: str | Sequence[str] | None = None,
        strict: bool = True,
        **options: Any,
    ) -> None:
        for key in options:
            if key not in self.options:
                raise ConfigError(f"unknown option {key!r} of dataset {self.name!r}; {nearest_name(key, ('modalities', *self.options))}")
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; {nearest_name(split, SPLITS)}")
        self.root = Path(root)
        if not self.root.is_dir():
            found = "a file" if self.root.exists() else "nothing"
            raise DataError(f"expected a dataset folder at {self.root}, found {found}; check the path")
        self.category = self._resolve_category(str(category))
        self.split = split
        self._wanted = parse_modalities(modalities)
        self.intrinsics = self._find_intrinsics()
        self.records = sorted(self._list_records(), key=lambda record: record.id)
        if strict and split == "train":
            self._check_training()
        elif strict and split == "test" and not self.records:
            raise DataError(f"{self.name}: category {self.category!r} has no test samples in {self.root}; {self.layout}")
        self.modalities = self._common_modalities()

    @classmethod
    def categories(cls, root: str | Path) -> list[str]:
        """Return the categories below `root`, in published order where there is one, else sorted.

        Raises:
            DataError: there are none.
        """
        raise NotImplementedError

    def _list_records(self) -> list[Record]:
        raise NotImplementedError

    def _find_intrinsics(self) -> Intrinsics | None:
        return None

    def _resolve_category(self, category: str) -> str:
        known = self.categories(self.root)
        if category not in known:
            raise DataError(f"{self.root} has no category {category!r}; {nearest_name(category, known)}")
        return category

    def _check_training(self) -> None:
        if not self.records:
            raise DataError(f"{self.name}: a category without training images: {self.category!r} in {self.root}; {self.layout}")
        for modality in self._wanted or MODALITIES:
            lacking = [record.id for record in self.records if modality not in record.modalities]
            if lacking and (len(lacking) < len(self.records)):
                shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
                raise DataError(
                    f"{self.name}: training folder of {self.category!r} has {modality} for {len(self.records) - len(lacking)} of "
                    f"{len(self.records)} samples, missing for {shown}; add the files, remove these samples or set modalities"
                )

    def _common_modalities(self) -> tuple[str, ...]:
        have = tuple(name for name in MODALITIES if self.records and all(name in record.modalities for record in self.records))
        if self._wanted is None:
            return have
        for name in self._wanted:
            if self.records and not any(name in record.modalities for record in self.records):
                raise DataError(
                    f"{self.name}: {self.category}/{self.split} has no {name}, only {', '.join(have)}; set modalities={','.join(have)}"
                )
        return tuple(name for name in have if name in self._wanted)

    def __len__(self) -> int:
        return len(self.records)

    def _read_at(self, position: int) -> Sample:
        return self.read(self.records[position])

    def read(self, record: Record) -> Sample:
        """Read the files of one record into a sample.

        Raises:
            DataError: a file is damaged, sizes differ (both files are named), the unit is not metres.
        """
        wanted = [name for name in record.modalities if self._wanted is None or name in self._wanted]
        if not wanted:
            raise DataError(
                f"sample {record.id!r} has {', '.join(record.modalities) or 'no'} files, but modalities={','.join(self._wanted or ())} "
                "was asked for; add the files or change modalities"
            )
        rgb = self.load_rgb(record) if "rgb" in wanted else None
        xyz, colour, organised = self.load_points(record, rgb) if "xyz" in wanted else (None, None, True)
        if rgb is None and (self._wanted is None or "rgb" in self._wanted):
            rgb = colour
        return assemble(record, rgb, xyz, organised, self.intrinsics)

    def load_rgb(self, record: Record) -> Tensor:
        """Read the colour image of a record, (3, H, W) float32."""
        return read_rgb(record.paths["rgb"])

    def load_points(self, record: Record, rgb: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
        """Return xyz (3, H, W) metres, colour of the points (3, H, W) or None, and whether there is a grid."""
        return read_xyz(record.paths["xyz"]), None, True


def assemble(record: Record, rgb: Tensor | None, xyz: Tensor | None, organised: bool, intrinsics: Intrinsics | None) -> Sample:
    """Join what was read into a `Sample`, with the checks that name files.

    Raises:
        DataError: sizes differ, the unit is not metres, a mask marks defects on a good part.
    """
    points = name_points(record.paths, record.id)
    if xyz is not None:
        check_extent(xyz, points)
    arrays = {record.paths.get("rgb", points): rgb, points: xyz}
    present = {path: tuple(array.shape[-2:]) for path, array in arrays.items() if array is not None}
    size = next(iter(present.values()))
    mask = None
    if "gt" in record.paths:
        mask = read_mask(record.paths["gt"])
        present[record.paths["gt"]] = tuple(mask.shape)
        if record.label == 0 and bool(mask.any()):
            raise DataError(f"{record.paths['gt']} marks {int(mask.sum())} defect pixels on a good part; clear the mask or move the sample")
    elif record.label == 0:
        import torch

        mask = torch.zeros(size, dtype=torch.bool)
    for path, got in present.items():
        if got != size:
            raise DataError(
                f"{next(iter(present))} has size {size}, but {path} has {got}, expected one size for rgb, xyz and gt of a sample; "
                "export them again in register"
            )
    meta = Meta(record.id, record.category, record.defect, dict(record.paths), intrinsics, organised)
    return Sample(rgb=rgb, xyz=xyz, mask=mask, label=record.label, meta=meta)
