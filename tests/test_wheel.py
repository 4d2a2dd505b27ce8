"""A wheel works outside the repository. Built without a compiler, so in seconds: the ops then run on their torch reference."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = ("mm3dad", "extensions", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder that holds nothing but the installed wheel."""
    work = tmp_path_factory.mktemp("wheel")
    (work / "source").mkdir()
    for name in SOURCES:  # a build leaves traces beside its sources
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, work / "source" / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "build", "*.egg-info")
            )
        else:
            shutil.copy(ROOT / name, work / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    environment = {**os.environ, "CXX": "no-such-compiler"}
    alone = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *alone, "--no-build-isolation", "-w", work / "wheels", work / "source"], check=True, env=environment)
    (wheel,) = (work / "wheels").glob("mm3dad-*.whl")
    subprocess.run([*pip, "install", *alone, "--target", work / "site", wheel], check=True)
    return work / "site"


def run(site: Path, folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_command_lists_methods_and_data_files_are_there(site, tmp_path):
    assert "duet" in run(site, tmp_path, str(site / "bin" / "mm3dad"), "list", "methods")
    assert {path.name for path in (site / "mm3dad/view/assets").iterdir()} == {
        path.name for path in (ROOT / "mm3dad/view/assets").iterdir()
    }


def test_it_fits_saves_loads_and_predicts(site, tmp_path):
    assert "works" in run(site, tmp_path, str(ROOT / "tests" / "wheel_probe.py"), str(site))
