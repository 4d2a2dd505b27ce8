"""Run the notebooks in empty folders and keep what they show, so that a reader on a code host sees results.

    python scripts/run_notebooks.py [notebooks/01_first_detection.ipynb ...]

What a run writes beside its results (progress, warnings: stderr) is left out, and so is what would differ at every run; pictures are
kept in 256 colours, a third of the bytes.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def run(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the results of its cells."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.metadata = {}
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data = {"image/png": shrink(output.data["image/png"])}
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def shrink(encoded: str) -> str:
    """Return a PNG in base64 with at most 256 colours."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main(words: list[str]) -> None:
    """Run the named notebooks, or all."""
    for path in map(Path, words) if words else sorted(FOLDER.glob("*.ipynb")):
        start = time.perf_counter()
        nbformat.write(run(path), path)
        sys.stdout.write(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main(sys.argv[1:])
