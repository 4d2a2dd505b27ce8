"""The doctor: what is wrong with a dataset, file by file, or with this installation, and the cure."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from mm3dad import __version__
from mm3dad.data import Dataset, Record
from mm3dad.data.checks import Finding, check_files, check_orphans, check_pairs, check_record
from mm3dad.data.eyecandies import Eyecandies, is_raw
from mm3dad.data.folder import Folder
from mm3dad.data.mvtec3d import MVTec3D
from mm3dad.data.records import SPLITS, list_folders
from mm3dad.data.single import list_inputs
from mm3dad.errors import DataError
from mm3dad.files import read_json
from mm3dad.run.progress import track

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "open3d-cpu",
    "open3d",
    "faiss-cpu",
    "numpy",
    "scipy",
    "pillow",
    "tifffile",
    "imagecodecs",
    "safetensors",
)
OPEN3D_LIBRARIES = {"libGL.so.1": "libgl1", "libusb-1.0.so.0": "libusb-1.0-0", "libgomp.so.1": "libgomp1", "libX11.so.6": "libx11-6"}
WORKERS = 4  # decoding leaves Python's lock, so a few threads keep the disk and two cores busy


def detect_layout(root: Path) -> type[Dataset] | None:
    """Return the dataset class that reads the tree below `root`, None for a folder of loose files."""
    folders = list_folders(root)
    if any(is_raw(folder) for folder in folders):
        return Eyecandies
    inside = [root, *folders]
    if not any((folder / split).is_dir() for folder in inside for split in ("train", "test")):
        return None
    own = any(next(folder.glob(f"*/*/{role}"), None) is not None for folder in inside for role in ("depth", "cloud"))
    return Folder if own or (root / "train").is_dir() or (root / "test").is_dir() else MVTec3D


def doctor(path: str | Path) -> list[Finding]:
    """Check a dataset (its layout is recognised), a folder of loose files or one file.

    Args:
        path: root of a dataset, a category, a folder or a file.

    Returns:
        The findings sorted by path, errors before warnings of one file; an empty list is a healthy dataset.

    Raises:
        DataError: nothing lies at `path`, or nothing in it can be read as data.
    """
    path = Path(path)
    kind = detect_layout(path) if path.is_dir() else None
    found = _check_loose(path) if kind is None else _check_tree(kind, path)
    if (path / "manifest.json").is_file():
        found += _check_manifest(path / "manifest.json")
    return sorted(set(found), key=lambda finding: (finding.path, finding.severity, finding.problem))


def _check_loose(path: Path) -> list[Finding]:
    files = list_inputs(path)
    return [finding for file in track(files, f"check {path.name}") for finding in check_files(file)]


def _check_tree(kind: type[Dataset], root: Path) -> list[Finding]:
    found: list[Finding] = []
    jobs: list[tuple[Dataset, Record]] = []
    for category in kind.categories(root):
        splits = {}
        for split in SPLITS:
            try:
                splits[split] = kind(root, category, split, strict=False)
            except DataError as error:
                found.append(Finding.of(str(root / category), error))
        for dataset in splits.values():
            found += check_pairs(dataset) + check_orphans(dataset)
            jobs += [(dataset, record) for record in dataset.records]
        found += _check_counts(root / category, {split: dataset.records for split, dataset in splits.items()})
    with ThreadPoolExecutor(WORKERS) as pool:
        results = pool.map(lambda job: check_record(*job), jobs)
        for findings in track(results, f"check {root.name}", total=len(jobs)):
            found += findings
    return found


def _check_counts(folder: Path, splits: dict[str, Sequence[Record]]) -> Iterator[Finding]:
    if "train" in splits and not splits["train"]:
        yield Finding(str(folder), "is a category without training images", f"put good parts into {folder.name}/train/good/rgb and xyz")
    if "test" in splits and len({record.label for record in splits["test"]}) == 1:
        lacks = "defective" if splits["test"][0].label == 0 else "good"
        yield Finding(str(folder), f"has no {lacks} test samples", "add some to be able to measure image AUROC", "warning")


def _check_manifest(path: Path) -> list[Finding]:
    try:
        manifest = read_json(path)
    except DataError as error:
        return [Finding.of(str(path), error)]
    if isinstance(manifest, dict) and manifest.get("complete") is False:
        return [Finding(str(path), "says that preparing was interrupted", "run the same `mm3dad prepare` again, it goes on there")]
    return []


def doctor_self() -> dict[str, Any]:
    """Look at this installation.

    Returns:
        {"versions", "devices", "caches", "ops", "problems"}: packages that are installed, what torch can compute on,
        where weights are kept, which code the ops run, and what is missing with the command that cures it.
    """
    import torch

    from mm3dad.ops import describe_ops

    problems = []
    versions = {"mm3dad": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if not name.startswith("open3d"):
                problems.append(f"{name} is not installed; pip install {name}")
    if not {"open3d", "open3d-cpu"} & set(versions):
        problems.append("open3d is not installed; pip install open3d-cpu")
    missing = [package for library, package in OPEN3D_LIBRARIES.items() if platform.system() == "Linux" and not _loads(library)]
    if missing:
        problems.append(f"open3d lacks system libraries; apt-get install -y {' '.join(missing)}")
    elif {"open3d", "open3d-cpu"} & set(versions):
        try:
            importlib.import_module("open3d")
        except (ImportError, OSError) as error:
            problems.append(f"open3d does not load ({error}); install the library that it names")
    devices = [f"cpu ({os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads)"]
    devices += [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    caches = {"torch": str(Path(torch.hub.get_dir()) / "checkpoints"), "huggingface": str(hub)}
    return {
        "versions": versions,
        "devices": devices,
        "caches": {name: f"{path} ({_describe_cache(Path(path))})" for name, path in caches.items()},
        "ops": describe_ops(),
        "problems": problems,
    }


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _describe_cache(folder: Path) -> str:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()] if folder.is_dir() else []
    return f"{len(sizes)} files, {sum(sizes) / 2**20:.0f} MiB" if sizes else "empty"
