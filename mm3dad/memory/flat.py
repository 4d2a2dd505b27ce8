"""A flat bank: patch rows of all normal samples together, thinned to a coreset (PatchCore, BTF, M3DM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm3dad.errors import DataError, ModelError
from mm3dad.memory.search import nearest_rows
from mm3dad.ops.finite import is_finite

TENSORS = ("rows", "owner", "shift", "scale")


class FlatBank:
    """Rows in half precision (or single, for published numbers), each with the number of the sample it came from.

    Rows stream in by `add`; `rescale` may bring channels to a scale, `thin` keeps the chosen rows, `match` searches them.
    Queries are rounded as the rows are, so a patch that is in the bank is found at distance 0.

    Args:
        precision: floating type of the rows.
    """

    def __init__(self, precision: torch.dtype = torch.float16) -> None:
        self._parts: list[Tensor] = []
        self.rows = torch.empty(0, 0, dtype=precision)
        self.owner = torch.empty(0, dtype=torch.int32)
        self.shift = torch.empty(0)
        self.scale = torch.empty(0)

    def add(self, identity: str, features: Tensor) -> None:
        """Take in the patches of one sample.

        Args:
            identity: the sample's id, for errors.
            features: (P, C) float32, P >= 1.
        Raises:
            DataError: features that are not finite in the bank's precision, or a width that differs from the first sample's.
        """
        rows = features.to(self.rows.dtype)
        if not is_finite(rows):
            raise DataError(
                f"features of sample {identity!r} must be finite, and below 65504 in half precision; check the sample and the weights"
            )
        if self._parts and rows.shape[1] != self._parts[0].shape[1]:
            raise DataError(f"features of sample {identity!r} have {rows.shape[1]} channels, expected {self._parts[0].shape[1]}")
        self._parts.append(rows)

    def seal(self) -> None:
        """Join what was added.

        Raises:
            DataError: nothing was added.
        """
        if not self._parts:
            raise DataError("a bank needs at least one normal sample, got none; check the training folder")
        counts = torch.tensor([len(part) for part in self._parts])
        self.rows, self._parts = torch.cat(self._parts), []
        self.owner = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts)
        width = self.rows.shape[1]
        self.shift, self.scale = torch.zeros(width), torch.ones(width)

    def rescale(self, shift: Tensor, scale: Tensor) -> None:
        """Bring a sealed bank to a scale, once: (row - shift) * scale, in place; queries follow by `normalise`.

        Args:
            shift, scale: (C,) float32.
        """
        self.shift, self.scale = shift, scale
        for block in self.rows.split(65536):
            block.copy_((block.float() - shift) * scale)

    def part(self, sample: int) -> Tensor:
        """Return the (P, C) float32 rows of one sample, scaled; all of them until `thin`."""
        return self.rows[self.owner == sample].float()

    def thin(self, chosen: Tensor) -> FlatBank:
        """Return a bank with the chosen rows (M',) int64; this one stays as it is."""
        bank = FlatBank()
        bank.rows, bank.owner, bank.shift, bank.scale = self.rows[chosen], self.owner[chosen], self.shift, self.scale
        return bank

    def without(self, sample: int) -> FlatBank:
        """Return a bank without the rows of one sample, or all of them where nothing else is left."""
        kept = (self.owner != sample).nonzero()[:, 0]
        return self.thin(kept) if len(kept) else self

    def normalise(self, features: Tensor) -> Tensor:
        """Bring (P, C) query features to the bank's scale and precision.

        Raises:
            ModelError: another width than the bank's.
        """
        if features.shape[1] != len(self.scale):
            raise ModelError(f"the bank holds {len(self.scale)} channels, got {features.shape[1]}; use the backbone it was fitted with")
        dtype = self.rows.dtype
        return ((features.to(dtype).float() - self.shift) * self.scale).to(dtype).float()

    def match(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest row of each normalised query (P, C): distance (P,) float32 and row (P,) int64."""
        distance, index = nearest_rows(queries, self.rows, 1)
        return distance[:, 0], index[:, 0]

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the tensors of the bank."""
        return {prefix + name: getattr(self, name) for name in TENSORS}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], prefix: str = "") -> FlatBank:
        """Take back what `state` gave.

        Raises:
            ModelError: a tensor is missing or the parts do not fit together.
        """
        bank = cls()
        for name in TENSORS:
            if prefix + name not in tensors:
                raise ModelError(f"the bank lacks {prefix + name!r}; fit and save the model again")
            setattr(bank, name, tensors[prefix + name])
        width = (bank.rows.shape[-1],)
        is_whole = bank.rows.ndim == 2 and len(bank.rows) > 0 and len(bank.owner) == len(bank.rows)
        if not is_whole or not bank.scale.shape == bank.shift.shape == width:
            raise ModelError("the parts of the bank do not fit together; the model is damaged, fit and save it again")
        return bank


def balance_blocks(rows: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return shift (C,) and scale (C,) that bring consecutive blocks of channels (one per modality) to total spread 1 each.

    Concatenated features of two modalities are compared by one distance, in which the unit of either would decide its weight.

    Args:
        rows: (M, C) floating.
        widths: channels of each block, together C.
    """
    variance = torch.cat([block.double().var(0, correction=0) for block in rows.split(16, dim=1)])
    totals = [block.sum().sqrt() for block in variance.split(list(widths))]
    # A block without spread tells normal parts from nothing; it keeps its unit rather than being divided by zero.
    scale = torch.cat([(1 / total if total > 0 else torch.ones(())).expand(n) for total, n in zip(totals, widths, strict=True)])
    return torch.zeros(rows.shape[1]), scale.float()
