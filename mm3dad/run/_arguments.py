"""What the user asked for, checked before any work is done."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mm3dad.errors import ConfigError, StorageError, nearest_name
from mm3dad.registry import DATASETS, METHODS

if TYPE_CHECKING:
    from mm3dad.methods import Detector

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "open3d-cpu", "open3d", "faiss-cpu", "open_clip_torch")


def split_options(method: str, dataset: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part `--set` options into the method's and the dataset's.

    `method.NAME` and `dataset.NAME` say whose option is meant; NAME alone is the method's where both have it.

    Raises:
        ConfigError: neither knows the option, it belongs to a flag of its own, or it is given twice.
    """
    sections = {
        "method": {field.name for field in dataclasses.fields(METHODS.get(method).Config)},
        "dataset": set(DATASETS.get(dataset).options),
    }
    found: dict[str, dict[str, Any]] = {"method": {}, "dataset": {}}
    for given, value in options.items():
        section, separator, name = given.partition(".")
        if not separator:
            section, name = "method" if given in sections["method"] else "dataset", given
        if name in ("seed", "device"):
            raise ConfigError(
                f"option {name} has its own flag; use --{'seed(s)' if name == 'seed' else 'device'} instead of --set {name}=..."
            )
        if name == "eval_size":
            raise ConfigError("eval_size is no option of a method; it goes with `mm3dad evaluate`, in Python as evaluate(eval_size=...)")
        if section not in sections or name not in sections[section]:
            known = (sections["method"] | sections["dataset"] | {"eval_size"}) - {"seed", "device"}
            if separator:
                known = {f"{room}.{one}" for room in sections for one in sections[room] - {"seed", "device"}}
            raise ConfigError(f"unknown option {given!r} of {method} on {dataset}; {nearest_name(given, known)}")
        if name in found[section]:
            raise ConfigError(f"option {name} was given twice, as {given} and without its section; keep one of them")
        found[section][name] = value
    return found["method"], found["dataset"]


def resolve_device(device: str | None) -> str:
    """Return "cpu" or "cuda[:i]"; "auto" and None take the GPU where there is one.

    Raises:
        ConfigError: a device this machine does not have.
    """
    if device in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(str(device))
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if kind.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if kind.type == "cuda" and (not torch.cuda.is_available() or (kind.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"device {device} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu or auto"
        )
    return str(device)


def make_detector(method: str, options: dict[str, Any], seed: int, device: str | None = "cpu") -> Detector:
    """Make an unfitted detector that repeats under `seed`; seed and device go to it where its Config has them.

    Raises:
        ConfigError: unknown method or option, a device that is not there or that the method cannot use.
    """
    kind = METHODS.get(method)
    fields = {field.name for field in dataclasses.fields(kind.Config)}
    device = resolve_device(device)
    given = dict(options)
    if "seed" in fields:
        given["seed"] = seed
    if "device" in fields:
        given["device"] = device
    torch.manual_seed(seed)
    return kind(**given)


def require_writable(folder: str | Path) -> Path:
    """Make sure that results can be kept before hours are spent on them.

    Raises:
        StorageError: the folder is a file, or cannot be made or written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"expected a folder to write to at {folder}, found a file; choose another --out")
    above = folder
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write {folder}: {above} is not a folder with write permission; choose another --out")
    return folder


def require_writable_file(path: str | Path) -> Path:
    """Make sure that a file can be written in the end.

    Raises:
        StorageError: it is a folder, or its folder cannot be made or written.
    """
    if Path(path).is_dir():
        raise StorageError(f"expected a file to write at {path}, found a folder; name a file in it")
    require_writable(Path(path).parent)
    return Path(path)


@functools.cache
def list_versions() -> dict[str, str]:
    """Return the versions of what a result depends on besides this package; only installed packages are named."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
