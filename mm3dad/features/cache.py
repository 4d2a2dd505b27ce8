"""Features kept on disk: they depend on neither seed, shots nor bank, so an ablation need not compute them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mm3dad import files
from mm3dad.errors import ModelError
from mm3dad.features.branches import Patches, PointBranch, RGBBranch
from mm3dad.nets.graph import Graph
from mm3dad.types import Sample

Found = TypeVar("Found")
FoundOut = TypeVar("FoundOut", covariant=True)
VERSION = 3  # raise it with every change to what any extractor computes


class Describes(Protocol[FoundOut]):
    """What can be cached: an extractor that describes samples."""

    @property
    def weights(self) -> list[dict[str, Any]]:
        """What a result says of the extractor's weights."""

    def describe(self, samples: Sequence[Sample]) -> list[FoundOut]:
        """Return what it finds in each sample."""


class CachedFeatures(Generic[Found]):
    """An extractor that looks into a folder before it computes.

    The key holds the branch's settings and weights and, for each input file, its path, size and time of change; samples that
    come from no file are computed each time.

    Args:
        branch: what computes the features.
        kind: the dataclass it returns, of tensors, lists of tensors and grids.
        folder: where they are kept; may be shared by any number of models.
        settings: everything the features depend on beside the sample.
    """

    def __init__(self, branch: Describes[Found], kind: type[Found], folder: str | Path, settings: dict[str, Any]) -> None:
        self.source, self._kind, self.folder = branch, kind, Path(folder)
        self._settings = json.dumps([VERSION, settings, branch.weights], sort_keys=True, default=str)

    @property
    def weights(self) -> list[dict[str, Any]]:
        """As the branch's."""
        return self.source.weights

    def describe(self, samples: Sequence[Sample]) -> list[Found]:
        """Return what the branch finds in each sample, from the folder where it is there; a damaged file is computed again."""
        paths = [self._path(sample) for sample in samples]
        found = [self._read(path) for path in paths]
        missing = [number for number, one in enumerate(found) if one is None]
        for number, one in zip(missing, self.source.describe([samples[number] for number in missing]) if missing else [], strict=True):
            found[number] = one
            path = paths[number]
            if path is not None:
                files.write_tensors(path, _pack(one))
        return [one for one in found if one is not None]

    def _path(self, sample: Sample) -> Path | None:
        if not sample.meta.paths:
            return None
        states = []
        for role, name in sorted(sample.meta.paths.items()):
            if role == "gt":
                continue
            try:
                state = Path(name).stat()
            except OSError:  # moved since the sample was read
                return None
            states.append([role, str(Path(name).resolve()), state.st_size, state.st_mtime_ns])
        key = hashlib.sha256(json.dumps([self._settings, sample.meta.id, sample.size, states]).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, path: Path | None) -> Found | None:
        if path is None or not path.is_file():
            return None
        try:
            return _unpack(self._kind, files.read_tensors(path))
        except (ModelError, TypeError, ValueError):
            return None


def _pack(found: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for field in fields(found):
        value = getattr(found, field.name)
        if isinstance(value, list):
            tensors |= {f"{field.name}.{number}": one.contiguous() for number, one in enumerate(value)}
        elif value is not None:
            tensors[field.name] = value.contiguous() if isinstance(value, Tensor) else torch.tensor(value)
    return tensors


def _unpack(kind: type[Found], tensors: dict[str, Tensor]) -> Found:
    values: dict[str, Any] = {name: value for name, value in tensors.items() if "." not in name}
    for name in sorted(tensors.keys() - values.keys(), key=lambda name: int(name.partition(".")[2])):
        values.setdefault(name.partition(".")[0], []).append(tensors[name])
    if "grid" in values:
        height, width = values["grid"].tolist()
        values["grid"] = height, width
    return kind(**values)


def keep_features(branch: Describes[Found], kind: type[Found], folder: str, *settings: object) -> Describes[Found]:
    """Return the extractor with its features kept in `folder`, or as it is where the folder is empty.

    Args:
        settings: everything the features depend on beside sample and weights, with the extractor's name.
    """
    return CachedFeatures(branch, kind, folder, {"settings": settings}) if folder else branch


class CachedBranch(CachedFeatures[Patches]):
    """A branch of `duet` with its features kept on disk. Arguments as `CachedFeatures`, which kind they are is known."""

    def __init__(self, branch: RGBBranch | PointBranch, folder: str | Path, settings: dict[str, Any]) -> None:
        super().__init__(branch, Patches, folder, settings)
        self.branch = branch

    @property
    def parameter_bytes(self) -> int:
        """As the branch's."""
        return self.branch.parameter_bytes

    @property
    def blocks(self) -> tuple[tuple[int, float], ...]:
        """As the branch's."""
        return self.branch.blocks

    def graph(self, size: tuple[int, int]) -> Graph | None:
        """As the branch's."""
        return self.branch.graph(size)

    def to_map(self, scores: Tensor, patches: Patches, sample: Sample) -> Tensor:
        """As the branch's."""
        return self.branch.to_map(scores, patches, sample)
