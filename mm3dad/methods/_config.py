"""What the settings of the methods have in common: how an option is declared and what its values are held to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Any

from mm3dad.errors import ConfigError

MODALITIES = ("rgb", "xyz")


def option(default: Any, text: str) -> Any:
    """Declare a field of a `Config` with its help line."""
    return field(default=default, metadata={"help": text})


def check_ranges(config: Any, ranges: Iterable[tuple[str, float, float]]) -> None:
    """Demand that each named option lies in [low, high].

    Raises:
        ConfigError: one does not.
    """
    for name, low, high in ranges:
        if not low <= getattr(config, name) <= high:
            raise ConfigError(f"option {name} must lie in {low} to {high}, got {getattr(config, name)}")


def check_modalities(names: Iterable[str]) -> None:
    """Demand that only rgb and xyz are asked for.

    Raises:
        ConfigError: another name.
    """
    for name in names:
        if name not in MODALITIES:
            raise ConfigError(f"modalities must be of rgb, xyz, got {name!r}; write modalities=rgb,xyz")


def check_window(window: int | None) -> None:
    """Demand a window of 0 or more cells, or none.

    Raises:
        ConfigError: a negative one.
    """
    if window is not None and window < 0:
        raise ConfigError(f"option window must be 0 or more cells, or none, got {window}")
