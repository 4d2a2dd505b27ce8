"""Every error a user can meet: one line that says what was expected, what came and the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Mm3dadError(Exception):
    """Base of all errors raised on purpose; `exit_status` is what the command line returns."""

    exit_status = 2


class ShapeError(Mm3dadError, ValueError):
    """An array has the wrong shape or dtype."""


class ConfigError(Mm3dadError, ValueError):
    """An option, name or setting is unknown or out of range."""


class DataError(Mm3dadError, ValueError):
    """A file, a sample or a dataset cannot be used as it is."""


class ModelError(Mm3dadError, ValueError):
    """A saved model or bank is damaged, foreign or does not fit the request."""


class WeightsError(Mm3dadError, ValueError):
    """Network weights are missing, damaged or of another architecture."""


class MissingPackageError(Mm3dadError, ImportError):
    """An optional library is not installed."""


class TrainingError(Mm3dadError, RuntimeError):
    """Training went astray (a loss that is not finite, or grows); what was learned before is kept."""

    exit_status = 1


class StorageError(Mm3dadError, OSError):
    """A result could not be written (disk full, no permission)."""

    exit_status = 1


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the hint that ends an unknown-name error: the closest known name and the full list."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known) if known else 'none'}"


def one_line(error: BaseException, most: int = 200) -> str:
    """Return another library's message as part of a line of ours: without line breaks, its first `most` letters."""
    return " ".join(str(error).split())[:most]
