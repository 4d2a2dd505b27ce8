"""Records: the files of each sample of a dataset tree, paired by stem and confined to its root."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mm3dad.data.images import PICTURES, TIFFS
from mm3dad.errors import ConfigError, DataError, nearest_name

SPLITS = ("train", "validation", "test")
MODALITIES = ("rgb", "xyz")
ROLE_FILES = {
    "rgb": (*PICTURES, *TIFFS),
    "xyz": (*TIFFS, ".npy"),
    "depth": (".png", *TIFFS, ".npy"),
    "cloud": (".ply", ".pcd"),
    "gt": (".png", ".bmp", *TIFFS, ".npy"),
}
POINT_ROLES = ("xyz", "depth", "cloud")


@dataclass(frozen=True)
class Record:
    """One sample that has not been read yet.

    Args:
        id: unique within the split, e.g. "test/hole/003".
        category: product class.
        defect: name of the defect folder, "good" for normal parts, None where unknown.
        label: 0 normal, 1 defective, None unknown.
        paths: role ("rgb", "xyz", "depth", "cloud", "gt", ...) -> file.
    """

    id: str
    category: str
    defect: str | None
    label: int | None
    paths: dict[str, str] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that this record has files for."""
        has = {"rgb": "rgb" in self.paths, "xyz": any(role in self.paths for role in POINT_ROLES)}
        return tuple(name for name in MODALITIES if has[name])


def confine(path: Path, root: Path) -> Path:
    """Return `path` if it stays inside `root` after links and ".." are followed.

    Raises:
        DataError: it leads outside.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise DataError(f"{path} leads outside the dataset {root}; copy the files into the dataset instead of linking to them")
    return path


def list_folders(folder: Path) -> list[Path]:
    """Return the visible subfolders, sorted by name, without those that macOS adds to archives; none if the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith((".", "__MACOSX")))


def list_role(folder: Path, role: str, root: Path) -> dict[str, Path]:
    """Return stem -> file of one role's folder.

    Raises:
        DataError: two files share a stem, or a link leads outside `root`.
    """
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    confine(folder, root)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry)
        if entry.name.startswith(".") or path.suffix.lower() not in ROLE_FILES[role] or not entry.is_file():
            continue
        if entry.is_symlink():
            confine(path, root)
        if path.stem in found:
            raise DataError(f"{found[path.stem]} and {path.name} are two files for one sample; keep one of them")
        found[path.stem] = path
    return found


def find_role(folder: Path, role: str, root: Path, stem: str) -> Path | None:
    """Return the file of one sample in one role's folder, None without one.

    Raises:
        DataError: two files have this stem, or a link leads outside `root`.
    """
    if not folder.is_dir():
        return None
    confine(folder, root)
    found = find_stem(folder, stem, ROLE_FILES[role])
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1].name} are two files for one sample; keep one of them")
    for path in found:
        confine(path, root)
    return found[0] if found else None


def find_stem(folder: Path, stem: str, suffixes: Iterable[str]) -> list[Path]:
    """Return the files of one stem, suffixes in lower or upper case.

    They are asked for by name: to list a folder once for each of its samples takes quadratic time.
    """
    found: dict[tuple[int, int], Path] = {}  # by inode, as some file systems do not tell .png from .PNG
    for suffix in suffixes:
        for path in (folder / f"{stem}{suffix}", folder / f"{stem}{suffix.upper()}"):
            if path.is_file():
                state = path.stat()
                found.setdefault((state.st_dev, state.st_ino), path)
    return list(found.values())


def list_records(folder: Path, split: str, category: str, root: Path, roles: Iterable[str]) -> list[Record]:
    """Return the records of one <good|defect> folder that holds a subfolder per role, sorted by id."""
    files = {role: list_role(folder / role, role, root) for role in roles}
    stems = sorted({stem for role, found in files.items() if role != "gt" for stem in found})
    return [
        Record(
            id=f"{split}/{folder.name}/{stem}",
            category=category,
            defect=folder.name,
            label=int(folder.name != "good"),
            paths={role: str(found[stem]) for role, found in files.items() if stem in found},
        )
        for stem in stems
    ]


def name_points(paths: dict[str, str], otherwise: str) -> str:
    """Return the file that holds the points of a sample, for messages."""
    return next((paths[role] for role in POINT_ROLES if role in paths), otherwise)


def parse_modalities(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the wanted modalities in their fixed order, None for all; "rgb,xyz" is understood, empty means all as in a method's Config.

    Raises:
        ConfigError: an unknown name.
    """
    if not value:
        return None
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
    for name in names:
        if name not in MODALITIES:
            raise ConfigError(f"unknown modality {name!r}; {nearest_name(name, MODALITIES)}")
    return tuple(name for name in MODALITIES if name in names)
