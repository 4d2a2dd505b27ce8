"""One run of an evaluation (category, seed, shots) and the folder that keeps it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mm3dad import files
from mm3dad.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Run:
    """A category under a seed and a number of shots.

    Args:
        folder: keeps run.json, written last, and maps/.
        identity: everything the result depends on besides the three; what differs forbids reuse.
    """

    category: str
    seed: int
    shots: int | None
    folder: Path
    identity: dict[str, Any]

    @staticmethod
    def name(category: str, seed: int, shots: int | None) -> str:
        """Return the folder's name, e.g. "bagel-seed0-full" or "bagel-seed1-4shot"."""
        return f"{category}-seed{seed}-{'full' if shots is None else f'{shots}shot'}"

    def read(self) -> dict[str, Any] | None:
        """Return the finished run, or None if there is none or a kept map is gone.

        Raises:
            DataError: run.json is damaged.
        """
        if not (self.folder / "run.json").is_file():
            return None
        try:
            kept = files.read_json(self.folder / "run.json")
            whole = all((self.folder / row["file"]).is_file() for row in kept["samples"])
            if not isinstance(kept["identity"], dict) or not isinstance(kept["metrics"], dict):
                raise TypeError("identity and metrics must be objects")
        except (DataError, KeyError, TypeError) as error:
            raise DataError(f"{self.folder / 'run.json'} is damaged or foreign ({error}); use --overwrite, or delete it") from error
        return kept if whole else None

    def require_same(self, kept: dict[str, Any], rescore: bool) -> None:
        """Refuse to mix results of different arguments in one table; scoring again may change the version of the metrics.

        Raises:
            ConfigError: what differs, both sides.
        """
        differing = files.find_differences(kept["identity"], json.loads(json.dumps(self.identity, default=str)))
        if rescore:
            differing.pop("mm3dad", None)
        if differing:
            name, (old, new) = next(iter(differing.items()))
            others = f" (also: {', '.join(list(differing)[1:])})" if len(differing) > 1 else ""
            cure = (
                "--rescore keeps its predictions, --overwrite drops them"
                if set(differing) == {"mm3dad"}
                else "use --overwrite or another --out"
            )
            raise ConfigError(f"{self.folder} was made with {name} = {_shorten(old)}, now it is {_shorten(new)}{others}; {cure}")

    def clear(self) -> None:
        """Remove an older run: first the file that says it is finished, then its maps."""
        (self.folder / "run.json").unlink(missing_ok=True)
        for path in (self.folder / "maps").glob("*.safetensors"):
            path.unlink()

    def write(self, metrics: dict[str, Any], samples: list[dict[str, Any]], fitted_on: list[str]) -> dict[str, Any]:
        """Write run.json, which marks the run as finished; return its content."""
        content = {
            "category": self.category,
            "seed": self.seed,
            "shots": self.shots,
            "identity": self.identity,
            "fitted_on": fitted_on,
            "metrics": metrics,
            "samples": samples,
        }
        files.write_json(self.folder / "run.json", content)
        return content

    def line(self, kept: dict[str, Any]) -> dict[str, Any]:
        """Return the run's entry in evaluate.json."""
        return {
            "seed": self.seed,
            "shots": self.shots,
            "category": self.category,
            "metrics": kept["metrics"],
            "folder": f"runs/{self.folder.name}",
        }


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
