"""A memory of whole images: a descriptor per image, and all patches of several layers, in half precision and if wanted on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ConfigError, DataError, ModelError


class LayeredBank:
    """Patches of n images, (n, P, C) float16 per layer, and the descriptors of the layer that retrieves, (n, C) float32.

    Images lie one behind the other, so that the few retrieved ones are read and the rest of a memory-mapped file is not touched.

    Args:
        count: how many images will come.
        folder: where the rows of a bank beyond memory lie while it is built (files that vanish with the bank); "" keeps them in memory.
    """

    def __init__(self, count: int, folder: str | Path = "") -> None:
        self.count, self.folder = count, folder
        self.size = 0
        self.layers: list[Tensor] = []
        self.descriptors = torch.empty(0, 0)
        self._files: list[Any] = []

    @staticmethod
    def estimate_bytes(count: int, patches: int, channels: Sequence[int]) -> int:
        """Return the bytes of a bank before it is built: patches of all layers in half precision, descriptors of the last in single."""
        return count * (2 * patches * sum(channels) + 4 * channels[-1])

    def add(self, identity: str, descriptor: Tensor, layers: Sequence[Tensor]) -> None:
        """Take in one image.

        Args:
            identity: the sample's id, for messages.
            descriptor: (C,) floating, of the layer that retrieves.
            layers: per layer (P, C) floating; widths may differ between layers, not between images.
        Raises:
            DataError: other layers or another grid than the first image's, values beyond half precision, more images than announced.
        """
        if self.size >= self.count:
            raise DataError(f"the bank was opened for {self.count} images, {identity!r} is one more; open it larger")
        if not self.layers:
            self.layers = [self._open(len(layer), layer.shape[1]) for layer in layers]
            self.descriptors = torch.zeros(self.count, len(descriptor))
        if [tuple(layer.shape) for layer in layers] != [tuple(layer.shape[1:]) for layer in self.layers]:
            raise DataError(
                f"features of {identity!r} have shapes {[tuple(layer.shape) for layer in layers]}, expected "
                f"{[tuple(layer.shape[1:]) for layer in self.layers]}; use one backbone and one image size"
            )
        for kept, layer in zip(self.layers, layers, strict=True):
            half = layer.half()
            if not bool(half.isfinite().all()):
                raise DataError(f"features of sample {identity!r} must be finite and below 65504; check the sample and the weights")
            kept[self.size] = half
        self.descriptors[self.size] = descriptor
        self.size += 1

    def _open(self, patches: int, channels: int) -> Tensor:
        shape = self.count, patches, channels
        if not self.folder:
            return torch.zeros(shape, dtype=torch.float16)
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            file = tempfile.NamedTemporaryFile(dir=self.folder, prefix="bank-", suffix=".f16")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"bank_folder {str(self.folder)!r} cannot be written ({error.strerror}); choose another folder") from error
        self._files.append(file)
        return torch.from_file(file.name, shared=True, size=self.count * patches * channels, dtype=torch.float16).view(shape)

    def similarity(self, descriptor: Tensor) -> Tensor:
        """Return the cosine (n,) of a (C,) descriptor with every image."""
        return F.normalize(self.descriptors, dim=1) @ F.normalize(descriptor.to(self.descriptors), dim=0)

    def retrieve(self, descriptor: Tensor, k: int, exclude: int | None = None) -> Tensor:
        """Return the (min(k, n),) int64 images most like a descriptor, most similar first.

        Args:
            exclude: an image that must not be found (itself, when it is held out).
        """
        values = self.similarity(descriptor)
        if exclude is not None:
            values[exclude] = -torch.inf
        return values.topk(min(k, self.size - (exclude is not None))).indices

    def patches_of(self, layer: int, images: Tensor) -> Tensor:
        """Return (K, P, C) float16 of the given images; only these are read."""
        return self.layers[layer][images]

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a model folder."""
        return {"descriptors": self.descriptors, **{f"layer{number}": layer for number, layer in enumerate(self.layers)}}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor]) -> LayeredBank:
        """Take back what `state` gave; memory-mapped tensors stay on disk.

        Raises:
            ModelError: tensors of another kind of bank.
        """
        bank = cls(len(tensors["descriptors"]))
        bank.descriptors, bank.size = tensors["descriptors"], len(tensors["descriptors"])
        names = [f"layer{number}" for number in range(len(tensors) - 1)]
        bank.layers = [tensors[name] for name in names]
        if not names or any(layer.ndim != 3 or len(layer) != bank.size for layer in bank.layers):
            raise ModelError("the model's layers and descriptors differ in length; fit and save it again")
        return bank
