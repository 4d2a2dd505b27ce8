"""What is wrong with the files of a dataset, sample by sample, and the cure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mm3dad.data._dataset import Dataset, assemble
from mm3dad.data.images import read_header, read_mask
from mm3dad.data.organized import extent
from mm3dad.data.records import MODALITIES, POINT_ROLES, ROLE_FILES, Record, list_role, name_points
from mm3dad.data.single import find_record, read_sample
from mm3dad.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from mm3dad.types import Sample

SUSPECT_EXTENT = 3.0  # metres: possible, but rather another unit
SUSPECT_SHARE = 0.05  # of measured pixels


@dataclass(frozen=True)
class Finding:
    """One problem of one file.

    Args:
        path: the file or folder.
        problem: what was expected and what came.
        cure: what to do.
        severity: "error" keeps the sample from being used, "warning" does not.
    """

    path: str
    problem: str
    cure: str
    severity: str = "error"

    @classmethod
    def of(cls, path: str, error: Exception, severity: str = "error") -> Finding:
        """Make a finding of an error whose message ends with its cure."""
        problem, _, cure = str(error).removeprefix(f"{path} ").rpartition("; ")
        return cls(path, problem or cure, cure if problem else "check the file", severity)


def check_headers(record: Record) -> list[Finding]:
    """Check that the image files of a record open, have fitting types and one size, without reading pixels."""
    found: list[Finding] = []
    sizes: dict[str, tuple[int, int]] = {}
    for role in ("rgb", "xyz", "depth", "gt"):
        if role not in record.paths:
            continue
        path = record.paths[role]
        try:
            header = read_header(path)
        except DataError as error:
            found.append(Finding.of(path, error))
            continue
        channels = 1 if len(header.shape) == 2 else 3 if header.size != header.shape[:2] else header.shape[-1]
        found += _check_kind(role, path, len(header.shape), channels, header.dtype)
        sizes[path] = header.size
    first = next(iter(sizes), "")
    found += [
        Finding(path, f"has size {size}, but {first} has {sizes[first]}, expected one size for a sample", "export them again in register")
        for path, size in sizes.items()
        if size != sizes[first]
    ]
    if record.label == 1 and "gt" not in record.paths:
        anything = next(iter(record.paths.values()))
        found.append(Finding(anything, "is defective and has no mask in gt/", "add one to be able to measure pixel metrics", "warning"))
    return found


def _check_kind(role: str, path: str, dimensions: int, channels: int, dtype: str) -> list[Finding]:
    if role == "xyz" and (dimensions != 3 or channels != 3):
        return [
            Finding(path, f"has {dimensions} dimensions and {channels} channels, expected xyz (H, W, 3)", "put a depth image into depth/")
        ]
    if role == "xyz" and not dtype.startswith("float"):
        return [Finding(path, f"holds {dtype}, expected float32 metres", "convert depth with data.organized.from_depth")]
    if role == "depth" and channels != 1:
        return [Finding(path, f"has {channels} channels, expected one channel of depth", "export z alone, without colour mapping")]
    if role == "rgb" and channels in (2, 4):
        return [Finding(path, "has an alpha channel, which is ignored", "save it without alpha to be sure of its colours", "warning")]
    if role == "rgb" and dtype not in ("uint8", "bool"):
        return [
            Finding(
                path, f"holds {dtype}, expected 8 bits a channel", "check that its range fills the type, or save it as 8 bits", "warning"
            )
        ]
    return []


def check_record(dataset: Dataset, record: Record) -> list[Finding]:
    """Read every file of a record and look at its values; a file whose header is wrong is not read."""
    found = check_headers(record)
    wrong = {finding.path for finding in found if finding.severity == "error"}
    rgb: Tensor | None = None
    try:
        rgb = dataset.load_rgb(record) if "rgb" in record.paths and record.paths["rgb"] not in wrong else None
    except DataError as error:
        found.append(Finding.of(record.paths["rgb"], error))
    if "gt" in record.paths and record.paths["gt"] not in wrong:
        try:
            mask = read_mask(record.paths["gt"])
            if record.label == 1 and not bool(mask.any()):
                cure = "draw the defect, or move the sample to good/"
                found.append(Finding(record.paths["gt"], "is empty on a defective part", cure, "warning"))
        except DataError as error:
            found.append(Finding.of(record.paths["gt"], error))
    role = next((role for role in POINT_ROLES if role in record.paths and record.paths[role] not in wrong), None)
    xyz, colour, organised = None, None, True
    if role is not None:
        try:
            xyz, colour, organised = dataset.load_points(record, rgb)
        except DataError as error:
            found.append(Finding.of(record.paths[role], error))
    if any(finding.severity == "error" for finding in found):
        return found
    try:
        sample = assemble(record, colour if rgb is None else rgb, xyz, organised, dataset.intrinsics)
    except DataError as error:
        about = next((path for path in record.paths.values() if str(error).startswith(path)), next(iter(record.paths.values())))
        return [*found, Finding.of(about, error)]
    return found + check_sample(sample)


def check_sample(sample: Sample) -> list[Finding]:
    """Look at the values of a sample: empty and nearly empty clouds, suspicious units, black images."""
    found = []
    if sample.rgb is not None and float(sample.rgb.max()) == 0:
        found.append(
            Finding(sample.meta.paths.get("rgb", sample.meta.id), "is black all over", "check the exposure or export it again", "warning")
        )
    if sample.xyz is None or sample.valid is None:
        return found
    path = name_points(sample.meta.paths, sample.meta.id)
    share = float(sample.valid.float().mean()) if sample.valid.numel() else 0.0
    if share == 0:
        found.append(Finding(path, "has no measured point, all are zero or NaN", "record the cloud again or remove the sample"))
    elif share < SUSPECT_SHARE and not _was_cleaned(sample):
        found.append(
            Finding(path, f"has measured points at {share:.1%} of the pixels only", "check the sensor's exposure and range", "warning")
        )
    span = extent(sample.xyz)
    if span > SUSPECT_EXTENT:
        cure = "if it is not in metres, convert it (folder data: unit=0.001)"
        found.append(Finding(path, f"spans {span:g} m, large for a part", cure, "warning"))
    elif share > 0 and span < 1e-4:
        found.append(Finding(path, f"spans {span:g} m, less than 0.1 mm", "give the cloud in metres", "warning"))
    return found


def _was_cleaned(sample: Sample) -> bool:
    """Whether colour is zero where points are missing, as background removal leaves it."""
    return sample.rgb is not None and sample.valid is not None and float((sample.rgb * ~sample.valid).mean()) < 1e-3


def check_pairs(dataset: Dataset) -> list[Finding]:
    """Find samples that lack a modality which others of the split have."""
    found = []
    for name in MODALITIES:
        lacking = [record for record in dataset.records if name not in record.modalities]
        if 0 < len(lacking) < len(dataset.records):
            severity = "error" if dataset.split == "train" else "warning"
            problem = f"has no {name}, which {len(dataset.records) - len(lacking)} of {len(dataset.records)} {dataset.split} samples have"
            cure = "add the file or remove the sample"
            found += [Finding(next(iter(record.paths.values())), problem, cure, severity) for record in lacking]
    return found


def check_orphans(dataset: Dataset) -> list[Finding]:
    """Find files that belong to no sample: masks without one, and kinds that are not read where they lie."""
    used = {record.paths["gt"] for record in dataset.records if "gt" in record.paths}
    folders = {
        Path(path).parent.parent for record in dataset.records for role, path in record.paths.items() if Path(path).parent.name == role
    }
    found = [
        Finding(str(mask), "is a mask without a sample of the same name", "rename it or add the sample", "warning")
        for folder in sorted(folders)
        for mask in list_role(folder / "gt", "gt", dataset.root).values()
        if str(mask) not in used
    ]
    for folder in sorted(folders):
        for role, suffixes in ROLE_FILES.items():
            unread = [path for path in sorted((folder / role).glob("[!.]*")) if path.suffix.lower() not in suffixes]
            cure = f"save it as {' or '.join(suffixes)}, or move it out of {role}/"
            found += [Finding(str(path), "is not read, its kind does not belong there", cure, "warning") for path in unread]
    return found


def check_files(path: Path) -> list[Finding]:
    """Check the sample that one file names, with its siblings (see `data.single`)."""
    try:
        record = find_record(path)
        found = check_headers(record)
        broken = any(finding.severity == "error" for finding in found)
        return found if broken else found + check_sample(read_sample(path))
    except DataError as error:
        return [Finding.of(str(path), error)]


def check_dataset(dataset: Dataset, clouds: int = 3) -> None:
    """Check every pair and header, and the values of a few samples, before time is spent on fitting.

    Args:
        dataset: an opened split.
        clouds: samples, spread over the split, whose pixels are read too.

    Raises:
        DataError: the first problem, with how many more there are.
    """
    count = len(dataset.records)
    picked = {round(i * (count - 1) / max(1, clouds - 1)) for i in range(min(clouds, count))}
    found = check_pairs(dataset) if dataset.split == "train" else []
    for index, record in enumerate(dataset.records):
        found += check_record(dataset, record) if index in picked else check_headers(record)
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        more = f" ({len(errors) - 1} more; `mm3dad doctor {dataset.root}` lists them)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0].path} {errors[0].problem}; {errors[0].cure}{more}")
