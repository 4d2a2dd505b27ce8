"""setup.py is the only list of dependencies; everything that repeats a part of it is held against it here."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mm3dad

ROOT = Path(__file__).resolve().parent.parent
# Modules whose name is not the name of the package that brings them.
PACKAGE_OF = {
    "PIL": "pillow",
    "yaml": "PyYAML",
    "faiss": "faiss-cpu",
    "sklearn": "scikit-learn",
    "open_clip": "open_clip_torch",
    "mlflow": "mlflow-skinny",
}


def read_lists() -> tuple[list[str], dict[str, list[str]]]:
    """CORE and EXTRAS of setup.py, without running it."""
    values = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = ast.literal_eval(node.value)
    return values["CORE"], values["EXTRAS"]


CORE, EXTRAS = read_lists()
NEEDED = [Requirement(line) for line in CORE + EXTRAS["dev"]]
NEEDED_HERE = [requirement for requirement in NEEDED if requirement.marker is None or requirement.marker.evaluate()]


def name_of(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def third_party_imports() -> dict[str, list[Path]]:
    """Top-level modules that the package imports anywhere, function bodies included, and the files that do."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "mm3dad").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top != "mm3dad":
                    found.setdefault(top, []).append(path.relative_to(ROOT))
    return found


@pytest.mark.parametrize("requirement", NEEDED_HERE, ids=str)
def test_dependency_is_installed_in_its_range(requirement):
    assert requirement.specifier.contains(metadata.version(requirement.name))


def test_installed_package_repeats_setup_py_and_the_version():
    assert metadata.version("mm3dad") == mm3dad.__version__
    installed = {str(Requirement(line)) for line in metadata.requires("mm3dad") or []}
    assert {str(Requirement(line)) for line in CORE} <= installed
    assert set(metadata.metadata("mm3dad").get_all("Provides-Extra")) == set(EXTRAS)


def test_command_is_installed():
    (command,) = metadata.entry_points(group="console_scripts", name="mm3dad")
    assert command.value == "mm3dad.cli:main"
    assert callable(command.load())


def test_every_import_of_the_package_is_declared():
    declared = {name_of(line) for line in CORE} | {name_of(line) for lines in EXTRAS.values() for line in lines}
    undeclared = {
        module: list(map(str, paths))
        for module, paths in third_party_imports().items()
        if canonicalize_name(PACKAGE_OF.get(module, module)) not in declared
    }
    assert undeclared == {}


def test_constraints_pin_every_dependency_to_what_is_in_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line)
        assert match, f"not a plain pin: {line!r}"
        pins[canonicalize_name(match[1])] = match[2]
    assert len(pins) == len(lines)
    for requirement in NEEDED_HERE:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_lock_holds_the_pinned_versions_with_their_hashes():
    head, *lines = (ROOT / "constraints.lock").read_text().splitlines()
    assert re.fullmatch(r"# cpython 3\.\d+ \w+ \w+: made of constraints.txt by scripts/lock.py, for 'make setup'\.", head)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    locked = set()
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert match and pins[canonicalize_name(match[1])] == match[2], line
        locked.add(canonicalize_name(match[1]))
    assert len(locked) == len(lines) and {canonicalize_name(one.name) for one in NEEDED_HERE} | {"setuptools"} <= locked


def test_conda_environment_lists_the_same_packages():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    packages = [line for line in pip if not line.startswith("-")]
    assert packages == CORE
    assert [line for line in pip if line.startswith("-")] == ["-c constraints.txt", "-e ."]
    assert "NOT TRIED" in (ROOT / "environment.yml").read_text()


def test_every_file_of_the_package_is_shipped():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["mm3dad"]
    others = [path for path in (ROOT / "mm3dad").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".so")]
    left_out = [str(path) for path in others if not any(path.match(pattern.removeprefix("**/")) for pattern in patterns)]
    assert left_out == []
    folders = {path.parent for path in (ROOT / "mm3dad").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_kernel_sources_are_shipped_and_built_by_both_setups():
    """What the two build scripts read lies in the source archives; the libraries they make are extensions, never package data."""
    assert "graft extensions" in (ROOT / "MANIFEST.in").read_text()
    alone = (ROOT / "extensions" / "MANIFEST.in").read_text()
    assert "graft csrc" in alone
    assert "build_kernels.py kernel_command.py" in alone
    for folder, name in ((ROOT, "mm3dad.ops._kernels"), (ROOT / "extensions", "pointnet2_ops._kernels")):
        assert f'kernels("{name}")' in (folder / "setup.py").read_text()
        project = tomllib.loads((folder / "pyproject.toml").read_text())
        assert [name_of(line) for line in project["build-system"]["requires"]] == ["setuptools", "torch"]
    torch_needed = next(line for line in CORE if name_of(line) == "torch")
    assert torch_needed in project["build-system"]["requires"]
    assert project["project"]["dependencies"] == [torch_needed]
    assert {path.suffix for path in (ROOT / "extensions" / "csrc").iterdir()} <= {".cpp", ".cu", ".cuh", ".h"}


def test_changelog_and_licence_speak_of_this_version():
    assert f"## [{mm3dad.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
