"""Read what `evaluate --out` and `predict --out` left: runs, rows, maps and the samples behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm3dad import files
from mm3dad.errors import DataError, Mm3dadError
from mm3dad.view.colors import Array

if TYPE_CHECKING:
    from mm3dad.types import Sample

READ_FIRST = ("rgb", "xyz", "depth", "cloud")  # roles that name a whole sample


@dataclass(frozen=True)
class Row:
    """One scored sample.

    Args:
        id: unique within its run.
        category: product class, "" where unknown.
        label: 0, 1, or None where unknown.
        defect: defect folder, None where unknown.
        score: image score.
        threshold: image threshold, or None.
        pixel_threshold: map value above which a pixel counts as defective, None where the model is not calibrated for it.
        paths: role -> file.
        file: the maps' safetensors, or None.
        predict_ms: time of the prediction, or None.
        is_outside: the method called the sample unlike all that it was fitted on; None where it does not say.
    """

    id: str
    category: str
    label: int | None
    defect: str | None
    score: float
    threshold: float | None
    pixel_threshold: float | None = None
    paths: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    predict_ms: float | None = None
    is_outside: bool | None = None


@dataclass(frozen=True)
class Run:
    """The rows of one fitted model: a category, a seed, a number of shots ("full" or a number)."""

    category: str
    seed: int | None
    shots: str
    rows: list[Row]


@dataclass(frozen=True)
class Output:
    """A result folder.

    Args:
        folder: where it lies.
        kind: "evaluate" or "predict".
        result: evaluate.json or predict.json; {} where predict left none.
        runs: in the order of the result.
    """

    folder: Path
    kind: str
    result: dict[str, Any]
    runs: list[Run]

    def first_runs(self) -> list[Run]:
        """Return one run per category, the first; the others differ from it in seed or shots only."""
        found: dict[str, Run] = {}
        for run in self.runs:
            found.setdefault(run.category, run)
        return list(found.values())


def is_output(path: str | Path) -> bool:
    """Say whether `path` is a folder that evaluate or predict wrote."""
    path = Path(path)
    return (path / "evaluate.json").is_file() or (path / "predictions.json").is_file()


def read_output(folder: str | Path) -> Output:
    """Read a result folder.

    Raises:
        DataError: neither evaluate.json nor predictions.json is there, or a file is damaged or of a newer format.
    """
    folder = Path(folder)
    if (folder / "evaluate.json").is_file():
        result = files.read_json(folder / "evaluate.json")
        if not isinstance(result, dict):
            raise DataError(f"{folder / 'evaluate.json'} must hold a JSON object, got {type(result).__name__}; run evaluate again")
        _check_format(folder / "evaluate.json", result)
        return Output(folder, "evaluate", result, _read_runs(folder, result))
    if (folder / "predictions.json").is_file():
        listed = files.read_json(folder / "predictions.json")
        rows = _read_rows(listed, folder, folder / "predictions.json", "")
        about = files.read_json(folder / "predict.json") if (folder / "predict.json").is_file() else {}
        about = about if isinstance(about, dict) else {}
        _check_format(folder / "predict.json", about)
        return Output(folder, "predict", about, [Run("", None, "full", rows)] if rows else [])
    raise DataError(f"expected evaluate.json or predictions.json in {folder}, found neither; give the --out folder of evaluate or predict")


def _check_format(path: Path, content: dict[str, Any]) -> None:
    version = content.get("format", 1)
    if not isinstance(version, int) or version > files.RESULT_FORMAT:
        raise DataError(f"{path} has format {version}, this version reads up to {files.RESULT_FORMAT}; update mm3dad")


def _read_runs(folder: Path, result: dict[str, Any]) -> list[Run]:
    """Runs of this result only: a folder that was resumed with other arguments may hold more."""
    listed = [run for run in result.get("runs") or [] if isinstance(run, dict)]
    order = {(str(run.get("category")), run.get("seed"), _shots(run.get("shots"))): index for index, run in enumerate(listed)}
    found: dict[tuple[str, Any, str], Run] = {}
    for path in sorted((folder / "runs").glob("*/run.json")):
        content = files.read_json(path)
        if not isinstance(content, dict):
            raise DataError(f"{path} must hold a JSON object, got {type(content).__name__}; run evaluate again")
        key = (str(content.get("category", "")), content.get("seed"), _shots(content.get("shots")))
        if not order or key in order:
            found[key] = Run(*key, _read_rows(content.get("samples"), path.parent, path, key[0]))
    return [found[key] for key in sorted(found, key=lambda key: order.get(key, 0))]


def _shots(value: Any) -> str:
    return "full" if value in (None, "full") else str(value)


def _read_rows(listed: Any, folder: Path, path: Path, category: str) -> list[Row]:
    rows = []
    for entry in listed if isinstance(listed, list) else []:
        try:
            rows.append(
                Row(
                    id=str(entry["id"]),
                    category=str(entry.get("category") or category),
                    label=entry.get("label"),
                    defect=entry.get("defect"),
                    score=float(entry["score"]),
                    threshold=None if entry.get("threshold") is None else float(entry["threshold"]),
                    pixel_threshold=None if entry.get("pixel_threshold") is None else float(entry["pixel_threshold"]),
                    paths={str(role): str(file) for role, file in (entry.get("paths") or {}).items()},
                    file=folder / entry["file"] if entry.get("file") else None,
                    predict_ms=entry.get("predict_ms"),
                    is_outside=entry.get("is_outside"),
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} holds a row without a readable id and score ({error!r}); run the command again") from error
    return rows


def read_maps(row: Row, names: Collection[str] | None = None) -> dict[str, Array]:
    """Return the maps of a row, with "mask" where it was kept, or only those in `names`; {} where they are missing or damaged."""
    if row.file is None or not row.file.is_file():
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        kept = load_file(row.file)
    except (SafetensorError, OSError, ValueError):
        return {}
    return {name: value for name, value in kept.items() if value.ndim == 2 and value.size and (names is None or name in names)}


def read_row_sample(row: Row) -> Sample | None:
    """Return the sample of a row, read from its files; None where they were moved or cannot be read."""
    from mm3dad.data.single import read_sample

    for role in READ_FIRST:
        path = row.paths.get(role)
        if path is None or not Path(path).is_file():
            continue
        try:
            sample = read_sample(path)
        except Mm3dadError:
            continue
        sample.meta = dataclasses.replace(
            sample.meta, id=row.id, category=row.category or sample.meta.category, defect=row.defect or sample.meta.defect
        )
        return sample
    return None
