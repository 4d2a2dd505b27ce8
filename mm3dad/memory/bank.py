"""One modality's memory of normal samples: a descriptor per sample (global) and patch features (local)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.memory.coreset import select_coreset
from mm3dad.memory.search import nearest_in_sample, nearest_rows

BYTES_PER_VALUE = 2  # rows are kept in half precision: its rounding is far below the distance between patches
TENSORS = ("rows", "place", "start", "coreset", "descriptors", "gaps", "held", "shift", "scale")  # what a saved bank consists of
ROW_OVERHEAD = 16  # sample, place and held-out score of a row


def _to_half(values: Tensor) -> Tensor:
    """Round to half precision; what lies beyond its range, as anything may beside parts that are all alike, stays at its end."""
    most = torch.finfo(torch.float16).max
    return values.clamp(-most, most).half()


class Bank:
    """Patch rows of normal samples, with the sample and the place each came from.

    Rows stream in sample by sample (`add`); `finish` puts the channels on one scale and chooses the coreset. A search either
    looks at the rows of given samples (`match_samples`) or at the coreset of all of them (`match_coreset`).

    Args:
        blocks: (width, weight) of consecutive channels that share one spread, brought to total spread `weight`: right where
            channels are commensurable, as the bins of a histogram are. Empty: each channel by its own spread, together 1.
        budget: bytes the rows may take, and the work on them; beyond it each sample is thinned to its own coreset.
        samples: how many samples will come, from which the thinning follows.
        work: bytes that a row costs beside itself while the model is made: for each channel, and once.

    Raises:
        ConfigError: the budget does not hold one row per sample.
    """

    def __init__(
        self, blocks: Sequence[tuple[int, float]] = (), budget: int = 2**31, samples: int = 1, work: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        self.blocks, self.budget, self.expected, self.work = tuple(blocks), budget, samples, work
        self.ids: list[str] = []
        self._means: list[Tensor] = []
        self._counts: list[int] = []  # rows of each sample that was added
        self.rows = torch.empty(0, 0, dtype=torch.float16)
        self.place = torch.empty(0, 2, dtype=torch.int16)
        self.start = torch.zeros(1, dtype=torch.int64)
        self.coreset = torch.empty(0, dtype=torch.int64)
        self.descriptors = torch.empty(0, 0)
        self.gaps = torch.empty(0)
        self.held = torch.empty(0)
        self.shift = torch.empty(0)
        self.scale = torch.empty(0)

    @staticmethod
    def estimate_bytes(samples: int, patches: int, channels: int) -> int:
        """Return the bytes of a bank before it is built."""
        return samples * (patches * (channels * BYTES_PER_VALUE + ROW_OVERHEAD) + channels * 4)

    @property
    def planned_bytes(self) -> int:
        """Bytes the finished bank will take, known as soon as the first sample is in."""
        if not self._counts:
            return 0
        return self.estimate_bytes(self.expected, self._counts[0], self.rows.shape[1])

    def rows_per_sample(self, patches: int, channels: int) -> int:
        """Return how many rows of each sample the budget holds, at most `patches`."""
        cost = channels * (BYTES_PER_VALUE + self.work[0]) + ROW_OVERHEAD + self.work[1]
        room = (self.budget // max(self.expected, 1) - channels * 4) / cost
        if room < 1:
            least = math.ceil(self.expected * (cost + channels * 4))
            raise ConfigError(
                f"memory_budget leaves a bank {self.budget:,} bytes, which do not hold one row for each of {self.expected} samples; raise "
                f"it by {least - self.budget:,} bytes for each modality"
            )
        return min(patches, int(room))

    def add(self, identity: str, features: Tensor, place: Tensor) -> None:
        """Take in one sample.

        Args:
            identity: the sample's id.
            features: (P, C) float32, finite.
            place: (P, 2) integer, row and column on the patch grid.
        Raises:
            DataError: features that are not finite in half precision, or a width that differs from the first sample's.
        """
        if not bool(features.half().isfinite().all()):
            raise DataError(f"features of sample {identity!r} must be finite and below 65504; check the sample and the weights")
        width = self._width()
        if width is not None and features.shape[1] != width:
            raise DataError(f"features of sample {identity!r} have {features.shape[1]} channels, expected {width}")
        self._means.append(features.mean(0))
        keep = self.rows_per_sample(len(features), features.shape[1])
        if keep < len(features):
            chosen = select_coreset(features, keep).sort().values
            features, place = features[chosen], place[chosen]
        if len(self.scale):
            features = (features - self.shift) * self.scale
        self._append(_to_half(features), place.to(torch.int16))
        self.ids.append(identity)

    def _append(self, features: Tensor, place: Tensor) -> None:
        """Put rows behind those there are, where possible in memory that was set aside for all: two copies would cost twice the bank."""
        filled = int(self.start[-1]) + sum(self._counts)
        if filled + len(features) > len(self.rows):
            capacity = filled + len(features) * max(1, self.expected - len(self.ids))
            rows, places = features.new_empty(capacity, features.shape[1]), place.new_empty(capacity, 2)
            if filled:
                rows[:filled], places[:filled] = self.rows[:filled], self.place[:filled]
            self.rows, self.place = rows, places
        self.rows[filled : filled + len(features)], self.place[filled : filled + len(features)] = features, place
        self._counts.append(len(features))

    def _width(self) -> int | None:
        return int(self.rows.shape[1]) if len(self.rows) else None

    def finish(self, fraction: float, start: int = 0) -> None:
        """Seal what was added: channel scale (first time only), sample descriptors and the coreset.

        Args:
            fraction: share of the rows in the coreset, at least one row.
            start: first pick of the coreset, taken modulo the rows.
        Raises:
            DataError: there is no sample.
        """
        if not self.ids:
            raise DataError("a bank needs at least one normal sample, got none; check the training folder")
        self.start = torch.tensor([0, *self.start.diff().tolist(), *self._counts]).cumsum(0)
        self.rows, self.place = self.rows[: int(self.start[-1])], self.place[: int(self.start[-1])]
        if not len(self.scale):
            parts = self.rows.split(self._counts)
            self._fit_scale(parts)
            for part in parts:
                part.copy_((part.float() - self.shift) * self.scale)
        width = len(self.scale)
        means = [(mean - self.shift) * self.scale for mean in self._means]
        self.descriptors = torch.cat([self.descriptors.view(-1, width), *(mean[None] for mean in means)])
        self._counts, self._means = [], []
        self.held = torch.zeros(len(self.rows))
        self.coreset = self.choose_coreset(range(len(self.ids)), fraction, start)

    def reopen(self, samples: int, keep: Sequence[int] | None = None) -> Bank:
        """Return a bank with these rows that takes `samples` more; this one stays as it is.

        The channel scale stays, so that the rows do; where the budget asks for it, each old sample is thinned to its own coreset.

        Args:
            samples: how many will come.
            keep: numbers of the old samples that stay, at least one; None keeps all.
        """
        kept = list(range(len(self.ids)) if keep is None else keep)
        bank = Bank(self.blocks, self.budget, len(kept) + samples, self.work)
        bank.ids, bank.shift, bank.scale = [self.ids[number] for number in kept], self.shift, self.scale
        bank.descriptors = self.descriptors[kept]
        chosen = []
        for number in kept:
            rows = self.rows_of(number)
            room = bank.rows_per_sample(*rows.shape)
            own = select_coreset(rows, room).sort().values if room < len(rows) else torch.arange(len(rows))
            chosen.append(own + self.start[number])
        bank.rows, bank.place = self.rows[torch.cat(chosen)], self.place[torch.cat(chosen)]
        bank.start = torch.tensor([0, *map(len, chosen)]).cumsum(0)
        return bank

    def _fit_scale(self, parts: Sequence[Tensor]) -> None:
        total = sum(len(part) for part in parts)
        mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / total
        spread = (torch.stack([(part.double() - mean).square().sum(0) for part in parts]).sum(0) / total).sqrt()
        # A channel without spread in normal data would otherwise turn rounding noise into distance.
        floor = 1e-3 * spread.mean() if float(spread.mean()) > 0 else 1.0
        spread = spread.clamp_min(floor)
        units, first = [], 0
        for width, weight in self.blocks or ((1, len(mean) ** -0.5),) * len(mean):
            total_spread = spread[first : first + width].square().sum().sqrt()
            units.append((weight / total_spread).expand(width))
            first += width
        if first != len(mean):
            raise DataError(f"features have {len(mean)} channels, their blocks {first}; this is a fault of the feature extractor")
        self.shift, self.scale = mean.float(), torch.cat(units).float()

    def span(self, sample: int) -> slice:
        """Return the rows of one sample as a slice."""
        return slice(int(self.start[sample]), int(self.start[sample + 1]))

    def measure_gaps(self, folds: Sequence[Sequence[int]]) -> None:
        """Note how far each normal sample is from its most similar one outside its fold: `gaps` (samples,)."""
        self.gaps = torch.zeros(len(self.ids))
        for fold in folds:
            allowed = sorted(set(range(len(self.ids))) - set(fold))
            self.gaps[list(fold)] = nearest_rows(self.descriptors[list(fold)], self.descriptors[allowed], 1)[0][:, 0]

    @property
    def reach(self) -> float:
        """How far a held-out normal sample is from its most similar other one, at most."""
        return float(self.gaps.max()) if len(self.gaps) else 0.0

    def choose_coreset(self, samples: Sequence[int], fraction: float, start: int = 0) -> Tensor:
        """Return the coreset rows of the given samples: greedy k-centre, exact (design, part 4.3)."""
        spans = [self.span(i) for i in samples]
        pool = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        rows = torch.empty(len(pool), self.rows.shape[1])
        for part, span in zip(rows.split([span.stop - span.start for span in spans]), spans, strict=True):
            part.copy_(self.rows[span])  # each at once to float32: a copy of all in half precision would come on top
        return pool[select_coreset(rows, max(1, int(fraction * len(pool))), start % len(pool))]

    def normalise(self, features: Tensor) -> Tensor:
        """Bring (P, C) query features to the bank's scale."""
        if features.shape[1] != len(self.scale):
            raise ModelError(f"the bank holds {len(self.scale)} channels, got {features.shape[1]}; use the backbone it was fitted with")
        return _to_half((features - self.shift) * self.scale).float()

    def rows_of(self, sample: int) -> Tensor:
        """Return the (P, C) float32 rows of one sample."""
        return self.rows[self.span(sample)].float()

    def places_of(self, sample: int) -> Tensor:
        """Return the (P, 2) int64 places of one sample's rows."""
        return self.place[self.span(sample)].long()

    def identity_of(self, row: int) -> str:
        """Return the id of the sample that a row came from."""
        return self.ids[int(torch.searchsorted(self.start, row, right=True)) - 1]

    def similar_samples(self, descriptor: Tensor, count: int, allowed: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the `count` samples whose descriptor is nearest to the given (C,), nearest first, and their distances."""
        pool = torch.arange(len(self.ids)) if allowed is None else torch.as_tensor(list(allowed))
        distances, index = nearest_rows(descriptor[None], self.descriptors[pool], min(count, len(pool)))
        return pool[index[0]], distances[0]

    def match_samples(
        self, features: Tensor, samples: Sequence[int], place: Tensor | None = None, window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find each query's nearest row within each given sample.

        Args:
            features: (P, C) float32, normalised.
            samples: K sample numbers.
            place: (P, 2) int64 places of the queries, needed with `window`.
            window: most cells a matched row may be away in rows and in columns; a query with none in reach searches the whole sample.
        Returns:
            distances (P, K) float32, row numbers (P, K) int64.
        """
        distances, rows = [], []
        for sample in map(int, samples):
            candidates = self.rows_of(sample)
            allowed = None
            if window is not None and place is not None:
                allowed = ((place[:, None] - self.places_of(sample)[None]).abs() <= window).all(-1)
                allowed |= ~allowed.any(1, keepdim=True)
            distance, row = nearest_in_sample(features, candidates, allowed)
            distances.append(distance)
            rows.append(row + self.start[sample])
        return torch.stack(distances, 1), torch.stack(rows, 1)

    def match_coreset(self, features: Tensor, count: int, coreset: Tensor | None = None, backend: str = "torch") -> tuple[Tensor, Tensor]:
        """Find each query's nearest coreset rows: distances (P, K) ascending and row numbers (P, K), K = min(count, coreset rows)."""
        coreset = self.coreset if coreset is None else coreset
        distances, index = nearest_rows(features, self.rows[coreset].float(), min(count, len(coreset)), backend)
        return distances, coreset[index]

    def state(self, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the plain values of a sealed bank."""
        return {prefix + name: getattr(self, name) for name in TENSORS}, {
            "ids": self.ids,
            "blocks": [list(block) for block in self.blocks],
            "budget": self.budget,
            "work": list(self.work),
        }

    @classmethod
    def from_state(cls, prefix: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> Bank:
        """Take back what `state` gave.

        Raises:
            ModelError: a tensor is missing or the parts do not fit together.
        """
        channel, row = values.get("work", (0.0, 0.0))  # a model from before it was counted
        blocks = [(int(width), float(weight)) for width, weight in values["blocks"]]
        bank = cls(blocks, int(values["budget"]), len(values["ids"]), (float(channel), float(row)))
        for name in TENSORS:
            if name == "gaps" and prefix + name not in tensors:
                continue  # a model from before they were kept; `measure_gaps` finds them again
            if prefix + name not in tensors:
                raise ModelError(f"the bank lacks {prefix + name!r}; fit and save the model again")
            setattr(bank, name, tensors[prefix + name])
        bank.ids = [str(identity) for identity in values["ids"]]
        fits = (
            bank.start.tolist()[:1] == [0]
            and bank.start.tolist()[-1] == len(bank.rows)
            and bool((bank.start.diff() > 0).all())
            and len(bank.start) == len(bank.ids) + 1
            and bank.descriptors.shape == (len(bank.ids), bank.rows.shape[-1])
            and len(bank.gaps) in (0, len(bank.ids))
            and len(bank.held) == len(bank.place) == len(bank.rows)
            and len(bank.scale) == len(bank.shift) == bank.rows.shape[-1]
            and len(bank.coreset) > 0
            and 0 <= int(bank.coreset.min()) <= int(bank.coreset.max()) < len(bank.rows)
        )
        if not fits:
            raise ModelError("the parts of the bank do not fit together; the model is damaged, fit and save it again")
        return bank
