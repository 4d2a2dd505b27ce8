"""The Python examples of README and docs run as they stand, one after the other in a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import mm3dad
from mm3dad.data.synthetic import write_dataset
from mm3dad.types import Sample

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COUNTS = {"train": 3, "validation": 0, "good": 1, "defect": 1}


def blocks_of(page: Path) -> list[str]:
    """The fenced Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


WITH_CODE = [page for page in PAGES if blocks_of(page)]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder with what the examples take as given: a demo's data, a user's scans, a model, a sample, a batch of points."""
    monkeypatch.chdir(tmp_path)
    for root in ("demo/data", "scans"):
        write_dataset(root, categories=["cookie"], size=96, counts=COUNTS)
    Path("scans/cookie").rename("scans/bracket")
    for other in ("scans/manifest.json", "scans/journal.jsonl"):
        Path(other).unlink(missing_ok=True)
    mm3dad.create("duet").fit(mm3dad.open_dataset("synthetic", "demo/data", "cookie", "train")).save("models/cookie")
    sample = Sample(rgb=torch.rand(3, 224, 224), xyz=torch.rand(3, 224, 224) + 0.1)
    line = torch.rand(64, 3)
    return {
        "mm3dad": mm3dad, "sample": sample, "camera": lambda: [sample], "xyz": torch.rand(2, 2048, 3), "features": torch.rand(2, 5, 2048),
        "x": line, "y": line[:, :1], "x_held": line[:8], "y_held": line[:8, :1], "folder": tmp_path / "training",
    }  # fmt: skip


def make_small(page: Path, code: str) -> str:
    """The default counts of the synthetic data, which take a minute, as a small set; everything else runs as printed."""
    return code.replace('{"train": 40, "validation": 8, "good": 20, "defect": 4}', repr(COUNTS) + ', categories=["cookie"], size=96')


def test_there_are_examples():
    assert {"README.md", "data.md", "kernels.md", "synthetic.md"} <= {page.name for page in WITH_CODE}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_examples_run(page, workplace):
    for code in blocks_of(page):
        exec(compile(make_small(page, code), page.name, "exec"), workplace)
    if page.name == "README.md":
        assert workplace["prediction"].map.shape == workplace["test"][0].size
        assert Path("models/cookie/model.json").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_every_method_has_a_page():
    names = {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")} | {"duet"}
    own = {name for name in mm3dad.list_methods() if type(mm3dad.create(name)).__module__.startswith("mm3dad.")}  # not those of other tests
    assert own <= names
