"""Which samples are fitted on: K of a category, several categories as one, and a fingerprint of their files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from mm3dad.data import Dataset, Record
from mm3dad.errors import ConfigError
from mm3dad.types import Sample, SampleSequence


class Selection(SampleSequence):
    """Chosen records of one or several datasets as one sequence, read on access.

    With several datasets the category goes before the id, so that ids stay unique.
    """

    def __init__(self, parts: Sequence[tuple[Dataset, Sequence[Record]]]) -> None:
        self._prefix = len(parts) > 1
        self._items = [(dataset, record) for dataset, records in parts for record in records]

    @property
    def ids(self) -> list[str]:
        """The samples' ids, in order."""
        return [f"{record.category}/{record.id}" if self._prefix else record.id for _, record in self._items]

    def __len__(self) -> int:
        return len(self._items)

    def _read_at(self, position: int) -> Sample:
        dataset, record = self._items[position]
        sample = dataset.read(record)
        if self._prefix:
            sample.meta = dataclasses.replace(sample.meta, id=f"{record.category}/{record.id}")
        return sample


def choose_shots(records: Sequence[Record], shots: int | None, seed: int) -> list[Record]:
    """Choose K normal samples, the same on every machine and for every version of every library.

    The records are ordered by sha256("<seed>/<id>"), a seeded permutation that no random number generator
    can change; the first K are taken. A larger K therefore contains the smaller one.

    Args:
        records: what there is to choose from.
        shots: K >= 1, or None for all.
        seed: another seed, another choice.

    Returns:
        The chosen records, sorted by id.

    Raises:
        ConfigError: K < 1, or more than there are.
    """
    if shots is None:
        return sorted(records, key=lambda record: record.id)
    if not 1 <= shots <= len(records):
        raise ConfigError(f"shots must be between 1 and the {len(records)} training samples there are, got {shots}; lower --shots")
    order = sorted(records, key=lambda record: hashlib.sha256(f"{seed}/{record.id}".encode()).digest())
    return sorted(order[:shots], key=lambda record: record.id)


def fingerprint(datasets: Sequence[Dataset]) -> str:
    """Return a sha256 over ids, sizes and times of all files, which changes when the data do."""
    digest = hashlib.sha256()
    for dataset in datasets:
        for record in dataset.records:
            for role, path in sorted(record.paths.items()):
                state = Path(path).stat()
                digest.update(f"{record.category}/{record.id}:{role}:{state.st_size}:{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
