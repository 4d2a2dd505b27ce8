"""The manifest of a data set that is being written, and the journal of its finished samples: interrupted work goes on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mm3dad import files
from mm3dad.data import Record
from mm3dad.errors import DataError, StorageError

MANIFEST = "manifest.json"
JOURNAL = ".journal"


def check_apart(root: Path, out: Path) -> None:
    """Refuse an output inside its input, or the other way round."""
    inside, outside = root.resolve(), out.resolve()
    if inside == outside or outside.is_relative_to(inside) or inside.is_relative_to(outside):
        raise DataError(f"output {out} and input {root} must be apart, one lies in the other; choose a new folder for the output")


def check_out(out: Path) -> None:
    """Refuse a file, and a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise StorageError(f"expected a folder to write to at {out}, found a file; choose another one")
    if out.is_dir() and not (out / MANIFEST).is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise DataError(f"{out} is not empty and holds no prepared data (no {MANIFEST}); choose a new folder")


def resume(out: Path, parameters: dict[str, Any], guards: Iterable[str] = ()) -> dict[str, Any]:
    """Return the finished samples of an earlier call with the same parameters; those named in `guards` may differ."""
    if not (out / MANIFEST).is_file():
        return {}
    manifest = files.read_json(out / MANIFEST)
    made = manifest.get("parameters") if isinstance(manifest, dict) else None
    if not isinstance(made, dict) or not isinstance(manifest.get("samples"), dict):
        raise DataError(f"{out} holds a {MANIFEST} of something else; choose a new folder")
    for key in sorted({*made, *parameters} - {*guards}):
        if made.get(key) != parameters.get(key):
            raise DataError(
                f"{out} was prepared with {key}={made.get(key)}, not {parameters.get(key)}; choose a new folder or use the same value"
            )
    done = manifest["samples"]
    for path in (out / JOURNAL).glob("*.json"):
        entry = files.read_json(path)
        done[entry["id"]] = entry["entry"]
    for key, entry in done.items():
        if not isinstance(entry, dict) or not {"inputs", "outputs"} <= entry.keys():
            raise DataError(f"{out / MANIFEST} is damaged at {key!r}, expected inputs and outputs; prepare into a new folder")
    return dict(done)


def _state(path: str) -> list[int]:
    state = os.stat(path)
    return [state.st_size, state.st_mtime_ns]


def is_current(out: Path, entry: dict[str, Any] | None, record: Record) -> bool:
    """Whether a finished sample still belongs to its input, by size and time of the files."""
    if entry is None or not all((out / path).is_file() for path in entry["outputs"]):
        return False
    inputs = entry["inputs"]
    return {role: found["path"] for role, found in inputs.items()} == dict(record.paths) and all(
        found["state"] == _state(found["path"]) for found in inputs.values()
    )


def describe_inputs(record: Record) -> dict[str, Any]:
    """Return path, sha256, size and time of each file of a record."""
    return {role: {"path": path, "sha256": files.sha256_file(path), "state": _state(path)} for role, path in record.paths.items()}


def note_sample(out: Path, key: str, entry: dict[str, Any]) -> None:
    """Write a finished sample's line of the journal."""
    files.write_json(out / JOURNAL / f"{key.replace('/', '__')}.json", {"id": key, "entry": entry})


def close_manifest(out: Path, header: dict[str, Any], done: dict[str, Any]) -> None:
    """Write the complete manifest, which makes the journal needless."""
    files.write_json(out / MANIFEST, {**header, "complete": True, "samples": {key: done[key] for key in sorted(done)}})
    for path in (out / JOURNAL).glob("*.json"):
        path.unlink()
    if (out / JOURNAL).is_dir():
        (out / JOURNAL).rmdir()
