"""What there is to choose from: methods with their options, synthesizers, datasets and weights."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from mm3dad.registry import DATASETS, METHODS, SYNTHESIZERS


def list_options(method: str) -> list[dict[str, Any]]:
    """Return name, default and help line of each option of a method; seed and device have flags of their own.

    Raises:
        ConfigError: unknown method.
    """
    config = METHODS.get(method).Config
    return [
        {"name": field.name, "default": _default(field), "help": field.metadata.get("help", "")}
        for field in dataclasses.fields(config)
        if field.name not in ("seed", "device")
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _summary(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def list_methods() -> list[dict[str, Any]]:
    """Return name, summary, inputs, settings, whether it trains, and options of every method."""
    rows = []
    for name in METHODS:
        kind = METHODS.get(name)
        rows.append({"name": name, "summary": _summary(kind), **dataclasses.asdict(kind.needs), "options": list_options(name)})
    return rows


def list_synthesizers() -> list[dict[str, Any]]:
    """Return name and summary of every defect synthesizer."""
    return [{"name": name, "summary": _summary(SYNTHESIZERS.get(name))} for name in SYNTHESIZERS]


def list_datasets() -> list[dict[str, Any]]:
    """Return name, summary and options of every kind of dataset."""
    return [{"name": name, "summary": _summary(DATASETS.get(name)), "options": list(DATASETS.get(name).options)} for name in DATASETS]


def list_weights() -> list[dict[str, Any]]:
    """Return the rows of the table of pretrained weights."""
    from mm3dad.features.weights import TABLE

    fields = ("name", "source", "sha256", "bytes", "licence")
    return [{field: getattr(row, field) or None for field in fields} for row in TABLE.values()]  # the hub's rows name no bytes


CATALOG: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "methods": list_methods,
    "synthesizers": list_synthesizers,
    "datasets": list_datasets,
    "weights": list_weights,
}
