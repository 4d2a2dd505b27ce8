"""One sample from one file name: alone, or with its siblings in a dataset tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mm3dad.data._dataset import assemble
from mm3dad.data.folder import ROLES, find_intrinsics, parse_unit, read_points
from mm3dad.data.images import PICTURES, TIFFS, read_header, read_rgb
from mm3dad.data.records import POINT_ROLES, ROLE_FILES, SPLITS, Record, confine, find_role, find_stem, parse_modalities
from mm3dad.errors import DataError

if TYPE_CHECKING:
    from mm3dad.types import Sample


def _guess_role(path: Path) -> str:
    """Return the role of a file that lies in no role folder."""
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        return "rgb"
    if suffix in ROLE_FILES["cloud"]:
        return "cloud"
    if suffix in (*TIFFS, ".npy"):
        header = read_header(path)
        if len(header.shape) == 2:
            return "depth"
        return "xyz" if header.dtype.startswith("float") else "rgb"
    raise DataError(f"{path} has the unknown kind {suffix or '(no suffix)'}; give PNG, JPG, TIFF, NPY, PLY or PCD")


def find_record(path: str | Path) -> Record:
    """Return the whole sample that a file belongs to.

    `.../<split>/<defect>/rgb/000.png` brings its siblings in xyz/ (depth/, cloud/) and gt/; a file in no
    such folder brings files beside it that have its stem and another modality.

    Raises:
        DataError: the file is missing or of an unknown kind.
    """
    path = Path(path)
    if len(path.parts) < 5:  # the folders that say category and split may be those of the working directory
        path = path.absolute()
    if not path.is_file():
        raise DataError(
            f"expected a file at {path}, found {'a folder' if path.is_dir() else 'nothing'}; give an image or a cloud of a sample"
        )
    if path.parent.name in ROLES:
        defect = path.parent.parent
        split = defect.parent.name if defect.parent.name in SPLITS else ""
        root = defect.parent.parent if split else defect
        files = {role: find_role(defect / role, role, root, path.stem) for role in ROLES} | {path.parent.name: path}
        return Record(
            id="/".join(part for part in (split, defect.name, path.stem) if part),
            category=root.resolve().name if split else "part",
            defect=defect.name if split else None,
            label=int(defect.name != "good") if split else None,
            paths={role: str(found) for role, found in files.items() if found is not None},
        )
    paths = {_guess_role(path): str(path)}
    for other in find_stem(path.parent, path.stem, (*PICTURES, *TIFFS, ".npy", *ROLE_FILES["cloud"])):
        if other.samefile(path):
            continue
        role = _guess_role(other)
        if role in paths or (role in POINT_ROLES and any(name in paths for name in POINT_ROLES)):
            raise DataError(f"{path} and {other.name} share a stem and a role ({role}); keep one of them")
        paths[role] = str(confine(other, path.parent))
    return Record(id=path.stem, category="part", defect=None, label=None, paths=paths)


def read_sample(
    path: str | Path,
    *,
    modalities: str | Sequence[str] | None = None,
    intrinsics: Sequence[float] | None = None,
    unit: float | str | None = None,
) -> Sample:
    """Read the sample that one file names (see `find_record`).

    Args:
        path: an image, TIFF, NPY, PLY or PCD file, alone or in a dataset tree.
        modalities: read only these.
        intrinsics: (fx, fy, cx, cy) in pixels for depth; otherwise intrinsics.json is looked for in the folders above.
        unit: metres per number of xyz, depth or cloud files, 0.001 or "mm".

    Raises:
        DataError: a file is missing or damaged, sizes differ, a depth image without intrinsics.
    """
    record = find_record(path)
    asked = parse_modalities(modalities)
    wanted = asked or record.modalities
    names = [name for name in record.modalities if name in wanted]
    if not names:
        has = ", ".join(record.modalities) or "neither rgb nor xyz"
        raise DataError(f"{path} belongs to a sample with {has}, not {', '.join(wanted)}; change modalities")
    above = Path(path).absolute().parents
    camera, depth_unit = find_intrinsics(above[1:5] if above[0].name in ROLES else above[:1])
    if intrinsics is not None:
        camera = tuple(float(value) for value in intrinsics)  # type: ignore[assignment]
    rgb = read_rgb(record.paths["rgb"]) if "rgb" in names else None
    xyz, colour, organised = None, None, True
    if "xyz" in names:
        xyz, colour, organised = read_points(record.paths, rgb, camera, parse_unit(unit), depth_unit)
    if rgb is None and (asked is None or "rgb" in asked):
        rgb = colour
    return assemble(record, rgb, xyz, organised, camera)


def list_inputs(path: str | Path, with_links: bool = False) -> list[Path]:
    """Return one file per sample: the file itself, or of a folder (flat, or any part of a dataset tree) all of them, sorted.

    Args:
        path: file or folder.
        with_links: list links that lead out of the folder too, for a caller that looks at each file by itself.

    Raises:
        DataError: nothing that can be read lies there, or a link that leads out.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"expected a file or folder at {path}, found nothing; check the path")
    known = {suffix for suffixes in ROLE_FILES.values() for suffix in suffixes}
    chosen: dict[tuple[Path, str], Path] = {}
    for file in sorted(path.rglob("*")):
        if (
            file.suffix.lower() not in known
            or not file.is_file()
            or file.parent.name == "gt"
            or any(p.startswith(".") for p in file.relative_to(path).parts)
        ):
            continue
        if file.is_symlink() and not with_links:
            confine(file, path)
        group = file.parent.parent if file.parent.name in ROLES else file.parent
        kept = chosen.setdefault((group, file.stem), file)
        if ROLES.index(_role_of(file)) < ROLES.index(_role_of(kept)):
            chosen[group, file.stem] = file
    if not chosen:
        raise DataError(f"expected images or clouds in {path}, found none; give a folder with PNG, JPG, TIFF, NPY, PLY or PCD files")
    return [chosen[key] for key in sorted(chosen)]


def _role_of(path: Path) -> str:
    return path.parent.name if path.parent.name in ROLES else ("rgb" if path.suffix.lower() in PICTURES else "xyz")
