"""Local banks behind a global one: a few whole samples stand for kinds of parts, and each kind has a bank of its own (GLFM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mm3dad.errors import ModelError
from mm3dad.memory.coreset import select_coreset
from mm3dad.memory.flat import FlatBank
from mm3dad.ops import nearest_neighbors


class RoutedBanks:
    """A global bank of sample descriptors, the router, and one local bank of rows per descriptor in it. No class label takes part.

    Source: GLFM (trained sheet, 1.3): the router holds real samples picked by greedy k-centre; each sample goes to the nearest of them.

    Args:
        centers: (K, C) float32, the global bank.
        banks: one local bank per centre.
    """

    def __init__(self, centers: Tensor, banks: Sequence[FlatBank]) -> None:
        self.centers, self.banks = centers, list(banks)
        self._place: list[int] = []  # number of each sample within its bank, while fitting

    @classmethod
    def build(cls, descriptors: Tensor, rows: Sequence[Tensor], ids: Sequence[str], count: int) -> RoutedBanks:
        """Pick the router and hand out the samples' rows, all of them.

        Args:
            descriptors: (S, C) float32, one per sample.
            rows: per sample (P, C).
            ids: of the samples.
            count: descriptors in the router; all samples where there are fewer.
        Raises:
            DataError: features that are not finite.
        """
        centers = descriptors[select_coreset(descriptors, min(count, len(descriptors)))]
        found = cls(centers, [FlatBank() for _ in centers])
        sizes = [0] * len(centers)
        for number, bank in enumerate(found.route(descriptors).tolist()):
            found.banks[bank].add(ids[number], rows[number])
            found._place.append(sizes[bank])
            sizes[bank] += 1
        for bank in found.banks:
            bank.seal()
        return found

    def route(self, descriptors: Tensor) -> Tensor:
        """Return the number of the local bank (S,) int64 that each descriptor (S, C) belongs to."""
        return nearest_neighbors(descriptors, self.centers, 1)[1][:, 0]

    def thin(self, share: float) -> RoutedBanks:
        """Return banks of which each keeps a coreset of int(share * rows), at least one; these stay as they are."""
        kept = []
        for bank in self.banks:
            chosen = select_coreset(bank.rows.float(), max(1, int(share * len(bank.rows))))
            kept.append(bank.thin(chosen))
        thinned = RoutedBanks(self.centers, kept)
        thinned._place = self._place
        return thinned

    def match(self, descriptor: Tensor, rows: Tensor, without: int | None = None) -> Tensor:
        """Return the distance of each row (P, C) of a sample to the nearest row of the bank its descriptor (C,) leads to: (P,).

        Args:
            without: number of a training sample whose own rows do not count; only until the banks are saved.
        """
        bank = self.banks[int(self.route(descriptor[None])[0])]
        if without is not None:
            bank = bank.without(self._place[without])
        return bank.match(bank.normalise(rows))[0]

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of all banks."""
        named = {key: value for number, bank in enumerate(self.banks) for key, value in bank.state(f"local.{number}.").items()}
        return {"global": self.centers, **named}

    @classmethod
    def from_state(cls, tensors: dict[str, Any]) -> RoutedBanks:
        """Take back what `state` gave.

        Raises:
            ModelError: a tensor is missing or the parts do not fit together.
        """
        if "global" not in tensors:
            raise ModelError("the model lacks its global bank; fit and save it again")
        centers = tensors["global"]
        banks = [FlatBank.from_state(tensors, f"local.{number}.") for number in range(len(centers))]
        if not len(banks) or any(bank.rows.shape[1] != centers.shape[1] for bank in banks):
            raise ModelError("the global and the local banks do not fit together; the model is damaged, fit and save it again")
        return cls(centers, banks)
