"""The house of the package: arrows point down, private things stay at home, results are written by one file."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "mm3dad").rglob("*.py"))
FRONT_DOOR = "mm3dad"
ABOVE_METHODS = (FRONT_DOOR, "mm3dad.cli", "mm3dad.view", "mm3dad.run")  # all that the front door opens lies at or below them

UNSAFE_LOADERS = ("pickle", "dill", "joblib", "shelve")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The folder or single file right under mm3dad that a module belongs to."""
    return ".".join(module.split(".")[:2])


def imports_of(source: str) -> Iterator[tuple[str, str | None, int]]:
    """(module, imported name or None, line) of every import of mm3dad, function bodies included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "mm3dad":
                    yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or ""), None, node.lineno
            elif (node.module or "").split(".")[0] == "mm3dad":
                for alias in node.names:
                    yield str(node.module), alias.name, node.lineno


def private_uses(source: str, room: str) -> list[str]:
    """Imports of another room's private files or names."""
    found = []
    for module, name, line in imports_of(source):
        if room_of(module) == room:
            continue
        parts = [*module.split("."), *([name] if name else [])]
        if any(part.startswith("_") and not part.endswith("__") for part in parts):
            found.append(f"line {line}: {'.'.join(parts)}")
    return found


def front_door_uses(source: str) -> list[str]:
    """Uses of `mm3dad` itself but for the version and submodules: `mm3dad.create` in a room would be a hidden arrow upwards."""
    rooms = {room_of(module_of(path)).removeprefix("mm3dad.") for path in SOURCES} - {FRONT_DOOR}
    allowed = {"__version__", *rooms}
    found = []
    for module, name, line in imports_of(source):
        if module == FRONT_DOOR and name is not None and name not in allowed:
            found.append(f"line {line}: from mm3dad import {name}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == FRONT_DOOR and node.attr not in allowed:
            found.append(f"line {node.lineno}: mm3dad.{node.attr}")
    return found


def unsafe_files(source: str) -> list[str]:
    """Calls that write a file in place, run what they read, or print from a library."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"line {node.lineno}: import {name}" for name in names if name.split(".")[0] in UNSAFE_LOADERS]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        mode = [*node.args[1:2], *[keyword.value for keyword in node.keywords if keyword.arg == "mode"]]
        method_mode = node.args[:1] if called.endswith(".open") else []
        modes = [str(item.value) for item in [*mode, *method_mode] if isinstance(item, ast.Constant)]
        writes = called in ("open", "gzip.open", "tarfile.open") or called.endswith(".open")
        in_place = called.endswith((".write_text", ".write_bytes")) and not called.startswith("files.")
        dumps = called in ("json.dump", "np.save", "np.savez", "np.savez_compressed", "torch.save", "yaml.dump")
        loads = called == "torch.load" and not any(keyword.arg == "weights_only" for keyword in node.keywords)
        if (writes and any(set(text) <= set("wax+bt") and set(text) & set("wax") for text in modes)) or in_place or dumps or loads:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_arrows_point_down():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]  # the cache is shared with other runs
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_room_has_a_floor():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    listed = {name.strip(" ()") for floor in contract["layers"] for name in floor.split("|")}
    assert {room_of(module_of(path)) for path in SOURCES} - {FRONT_DOOR} <= listed


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_the_rules_of_the_house(path):
    source, module = path.read_text(), module_of(path)
    assert private_uses(source, room_of(module)) == []
    if room_of(module) not in ABOVE_METHODS:
        assert front_door_uses(source) == []
    if module != "mm3dad.files":
        assert unsafe_files(source) == []


def test_the_rules_find_what_they_forbid():
    assert private_uses("from mm3dad.data._dataset import Record", "mm3dad.run")
    assert private_uses("from mm3dad.data.mvtec3d import _read", "mm3dad.run")
    assert not private_uses("from mm3dad.data._dataset import Record", "mm3dad.data")
    assert front_door_uses("from mm3dad import create")
    assert front_door_uses("import mm3dad\nmm3dad.load(folder)")
    assert not front_door_uses("from mm3dad import __version__, files")
    assert not front_door_uses("import mm3dad\nmm3dad.__version__")
    for source in (
        "open('a', 'w')",
        "open('a', mode='wb')",
        "path.open('w')",
        "path.write_text('a')",
        "np.save(path, a)",
        "import pickle",
        "from joblib import dump",
        "torch.load(path)",
    ):
        assert unsafe_files(source), source
    for source in (
        "open('a')",
        "path.open('rb')",
        "Image.open(path)",
        "files.write_text(path, 'a')",
        "torch.load(path, weights_only=True)",
    ):
        assert not unsafe_files(source), source


def test_repository_has_no_path_of_one_machine():
    kept = [path for pattern in ("*.py", "*.md", "*.yml", "*.toml", "*.sh", "Makefile") for path in ROOT.glob(pattern)]
    for folder in ("mm3dad", "tests", "docs", "scripts", "benchmarks", "notebooks"):
        kept += [path for pattern in ("*.py", "*.md", "*.sh", "*.ipynb") for path in (ROOT / folder).rglob(pattern)]
    homes = ["/" + name + "/" for name in ("work", "root", "home", "Users")]
    assert [str(path.relative_to(ROOT)) for path in kept if any(home in path.read_text() for home in homes)] == []
