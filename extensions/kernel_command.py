"""The setuptools side of the kernels: what both setup.py files hand to `setup()`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from build_kernels import BuildError, build
from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildKernels(build_ext):
    """Build the library; where that cannot be done say so in one line and go on: the ops then run on their torch reference."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one library."""
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            build(library)
        except BuildError as error:
            library.unlink(missing_ok=True)  # one of an earlier build must not end in a wheel of other sources
            self.warn(f"native kernels not built, the ops run on their torch reference: {error}")

    def get_ext_filename(self, fullname: str) -> str:
        """Name the file without the tag of a Python version: it is no Python module."""
        return str(Path(*fullname.split("."))) + ".so"


class TagWheel(bdist_wheel):
    """Say in a wheel's name that it fits any Python, but one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return (python, abi, platform)."""
        return ("py3", "none", super().get_tag()[2])


def kernels(name: str) -> dict[str, Any]:
    """Return the arguments of `setup()` that build the library under a dotted name."""
    return {
        "ext_modules": [Extension(name, sources=[], optional=True)],
        "cmdclass": {"build_ext": BuildKernels, "bdist_wheel": TagWheel},
    }
