"""Names to things: methods and datasets are found by a written, lower-case name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from mm3dad.errors import ConfigError, nearest_name


class Registry:
    """A table of names whose modules are imported on first use, so that listing stays light.

    Args:
        kind: the word used in errors ("method", "dataset").
        modules: name -> "module:attribute".
    """

    def __init__(self, kind: str, modules: dict[str, str]) -> None:
        self.kind = kind
        self._modules = dict(modules)
        self._loaded: dict[str, Any] = {}

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        return sorted({*self._modules, *self._loaded})

    def register(self, name: str, thing: Any) -> None:
        """Add `thing` under `name` (an outside method); a name that is taken is an error."""
        if name in self.names():
            raise ConfigError(f"{self.kind} {name!r} is registered already; choose another name")
        self._loaded[name] = thing

    def get(self, name: str) -> Any:
        """Return the thing called `name`.

        Raises:
            ConfigError: unknown name; the message names the nearest known one.
        """
        if name not in self._loaded:
            if name not in self._modules:
                raise ConfigError(f"unknown {self.kind} {name!r}; {nearest_name(name, self.names())}")
            module, attribute = self._modules[name].split(":")
            self._loaded[name] = getattr(importlib.import_module(module), attribute)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


METHODS = Registry(
    "method",
    {
        "btf": "mm3dad.methods.btf:BTF",
        "cfm": "mm3dad.methods.cfm:CFM",
        "cif": "mm3dad.methods.cif:Cif",
        "das3d": "mm3dad.methods.das3d:Das3d",
        "duet": "mm3dad.methods.duet:Duet",
        "g2sf": "mm3dad.methods.g2sf:G2SF",
        "glfm": "mm3dad.methods.glfm:Glfm",
        "m3dm": "mm3dad.methods.m3dm:M3DM",
        "mentor3ad": "mm3dad.methods.mentor3ad:Mentor3AD",
        "mrad": "mm3dad.methods.mrad:Mrad",
        "patchcore": "mm3dad.methods.patchcore:PatchCore",
        "muscv2": "mm3dad.methods.muscv2:MuScV2",
        "rad": "mm3dad.methods.rad:Rad",
        "radar": "mm3dad.methods.radar:Radar",
        "resad": "mm3dad.methods.resad:ResAD",
        "vote3deep": "mm3dad.methods.vote3deep:Vote3Deep",
    },
)
DATASETS = Registry(
    "dataset",
    {
        "mvtec3d": "mm3dad.data.mvtec3d:MVTec3D",
        "eyecandies": "mm3dad.data.eyecandies:Eyecandies",
        "folder": "mm3dad.data.folder:Folder",
        "real3d": "mm3dad.data.real3d:Real3D",
        "synthetic": "mm3dad.data.mvtec3d:Synthetic",
    },
)
SYNTHESIZERS = Registry(
    "synthesizer",
    {
        "cutpaste": "mm3dad.synthesis.synthesizers:CutPaste",
        "dual": "mm3dad.synthesis.synthesizers:DualModal",
        "seas": "mm3dad.synthesis.seas:Seas",
        "stretch": "mm3dad.synthesis.synthesizers:Stretch",
    },
)
