"""Every notebook runs from its first cell to its last in an empty folder, shows its results, and names nothing of the machine."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000  # bytes of a notebook with its pictures
ROOTS = ("home", "root", "tmp", "work", "Users", "usr", "opt", "mnt", "var")
MACHINE = re.compile(r"(?<![\w.)])/(" + "|".join(ROOTS) + r")/|[A-Za-z]:\\")


def shown(cell) -> list[str]:
    """Return the text that a cell and its outputs show; pictures are bytes, in which any letters may come."""
    texts = [cell.source]
    for output in cell.get("outputs", []):
        texts += [output.get("text", ""), *output.get("traceback", [])]
        texts += [value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
    return texts


def test_the_notebooks_are_there():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_with_its_results(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run scripts/run_notebooks.py"
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_names_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    assert not [text for cell in notebook.cells for text in shown(cell) if MACHINE.search(text)]


@pytest.mark.parametrize(
    ("text", "named"),
    [("written to /tmp/x/a.png", True), ("'/mnt/me/data'", True), ("C:\\data", True), ("data/tmp/a", False), ("a ratio of 1/2", False)],
)
def test_paths_of_a_machine_are_told_from_others(text, named):
    assert bool(MACHINE.search(text)) == named
