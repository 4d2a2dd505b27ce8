"""Features kept on disk: they depend on neither seed, shots nor bank, so an ablation need not compute them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mm3dad import files
from mm3dad.errors import ModelError
from mm3dad.features.branches import Patches, PointBranch, RGBBranch
from mm3dad.types import Sample


class Describes(Protocol):
    """What can be cached: an extractor that gives the patches of samples."""

    @property
    def weights(self) -> list[dict[str, Any]]:
        """What a result says of the extractor's weights."""

    def describe(self, samples: Sequence[Sample]) -> list[Patches]:
        """Return the patches of each sample."""


class CachedFeatures:
    """An extractor that looks into a folder before it computes.

    The key holds the branch's settings and weights and, for each input file, its path, size and time of change; samples that
    come from no file are computed each time.

    Args:
        branch: what computes the features.
        folder: where they are kept; may be shared by any number of models.
        settings: everything the features depend on beside the sample.
    """

    def __init__(self, branch: Describes, folder: str | Path, settings: dict[str, Any]) -> None:
        self._source, self.folder = branch, Path(folder)
        self._settings = json.dumps([settings, branch.weights], sort_keys=True, default=str)

    @property
    def weights(self) -> list[dict[str, Any]]:
        """As the branch's."""
        return self._source.weights

    def describe(self, samples: Sequence[Sample]) -> list[Patches]:
        """Return the patches of each sample, from the folder where they are there; a damaged file is computed again."""
        paths = [self._path(sample) for sample in samples]
        found = [self._read(path) for path in paths]
        missing = [number for number, patches in enumerate(found) if patches is None]
        for number, patches in zip(missing, self._source.describe([samples[number] for number in missing]) if missing else [], strict=True):
            found[number] = patches
            path = paths[number]
            if path is not None:
                tensors = {"features": patches.features, "place": patches.place, "grid": torch.tensor(patches.grid)}
                files.write_tensors(path, tensors | ({} if patches.centers is None else {"centers": patches.centers}))
        return [patches for patches in found if patches is not None]

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

    def _read(self, path: Path | None) -> Patches | None:
        if path is None or not path.is_file():
            return None
        try:
            tensors = files.read_tensors(path)
            height, width = tensors["grid"].tolist()
            return Patches(tensors["features"], tensors["place"], (height, width), tensors.get("centers"))
        except (ModelError, KeyError, ValueError):
            return None


class CachedBranch(CachedFeatures):
    """A branch of `duet` with its features kept on disk. Arguments as `CachedFeatures`."""

    def __init__(self, branch: RGBBranch | PointBranch, folder: str | Path, settings: dict[str, Any]) -> None:
        super().__init__(branch, folder, settings)
        self.branch = branch

    @property
    def blocks(self) -> tuple[tuple[int, float], ...]:
        """As the branch's."""
        return self.branch.blocks

    def to_map(self, scores: Tensor, patches: Patches, sample: Sample) -> Tensor:
        """As the branch's."""
        return self.branch.to_map(scores, patches, sample)
