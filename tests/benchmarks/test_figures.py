"""The pictures of the methods' pages."""

from __future__ import annotations

import pytest
from PIL import Image

from benchmarks import figures
from mm3dad.run.prepare import prepare_synthetic

COUNTS = {"train": 3, "validation": 0, "good": 1, "defect": 2}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    names = [figures.CATEGORY, *figures.OTHERS]
    return prepare_synthetic(tmp_path_factory.mktemp("figures") / "data", categories=names, size=64, counts=COUNTS, workers=1)


@pytest.mark.parametrize("name", ["patchcore", "mrad", "muscv2"])  # one-class, auxiliary, transductive
def test_a_picture_has_a_row_per_sample(tree, tmp_path, name):
    path = figures.draw_method(name, tree, tmp_path / f"{name}.png")
    assert path.stat().st_size < 150_000
    with Image.open(path) as picture:
        width, height = picture.size
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20)}
    assert height > 4 * figures.SIZE
    assert width > (4 if name == "muscv2" else 3) * figures.SIZE > width - (4 if name == "muscv2" else 3) * figures.SIZE
    assert any(abs(r) < 60 and g > 180 and b > 180 for r, g, b in colours)  # the outline of the truth survived


def test_samples_show_defects_of_either_modality_and_a_good_part(tree):
    _, test = figures.fit_method("patchcore", tree)
    captions = list(figures.choose_samples(test).values())
    assert [caption.split(",")[0] for caption in captions] == ["cut", "stain", "dent", "good"]
    assert captions[1] == "stain, in the image alone"
