from __future__ import annotations

import shutil

import pytest
from PIL import Image

from mm3dad import files
from mm3dad.errors import DataError
from mm3dad.view import view_path
from tests.view.parts import check_offline, make_evaluation, make_rows, make_sample, write_sample


def size_of(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_a_sample_file_names_the_whole_sample(tmp_path):
    paths = write_sample(tmp_path / "data", make_sample())
    written = view_path(paths["rgb"], tmp_path / "a.html", tmp_path / "a.png")
    assert written == [tmp_path / "a.html", tmp_path / "a.png"]
    assert "ground truth" in check_offline(written[0].read_text()).raw
    assert size_of(written[1])[0] > 3 * 240


def test_without_a_file_the_page_is_written_here(tmp_path, monkeypatch):
    paths = write_sample(tmp_path / "data", make_sample())
    monkeypatch.chdir(tmp_path)
    assert [path.resolve() for path in view_path(paths["xyz"])] == [tmp_path / "000-view.html"]


def test_a_dataset_tree_gives_a_contact_sheet_and_a_defective_sample(tmp_path):
    make_rows(tmp_path / "data", tmp_path / "out")
    written = view_path(tmp_path / "data", tmp_path / "a.html", tmp_path / "a.png")
    assert "defect: cut" in written[0].read_text()
    assert size_of(written[1])[1] > 6 * 240
    view_path(tmp_path / "data", html=tmp_path / "b.html", sample_id="test/dent/001")
    assert "defect: dent" in (tmp_path / "b.html").read_text()


@pytest.mark.parametrize("kind", ["evaluate", "predict"])
def test_a_result_folder_shows_its_highest_score(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "evaluate":
        make_evaluation(tmp_path / "data", out)
    else:
        files.write_json(out / "predictions.json", make_rows(tmp_path / "data", out))
    written = view_path(out, tmp_path / "a.html", tmp_path / "a.png")
    page = check_offline(written[0].read_text())
    assert "test/cut/005" in page.words and "score, 3D" in page.raw
    assert size_of(written[1])[1] > 6 * 240
    view_path(out, html=tmp_path / "b.html", sample_id="test/dent/001")
    assert "test/dent/001" in check_offline((tmp_path / "b.html").read_text()).words


def test_errors_name_the_cure(tmp_path):
    out = tmp_path / "out"
    files.write_json(out / "predictions.json", make_rows(tmp_path / "data", out))
    with pytest.raises(DataError, match="did you mean 'test/cut/002'"):
        view_path(out, html=tmp_path / "a.html", sample_id="test/cut/02")
    with pytest.raises(DataError, match="no sample 'test/none/000'"):
        view_path(tmp_path / "data", html=tmp_path / "a.html", sample_id="test/none/000")
    shutil.rmtree(tmp_path / "data")
    for target in ({"html": tmp_path / "a.html"}, {"png": tmp_path / "a.png"}):
        with pytest.raises(DataError, match="put them back"):
            view_path(out, **target)
    files.write_json(out / "predictions.json", [])
    with pytest.raises(DataError, match="no scored sample"):
        view_path(out)
    with pytest.raises(DataError):
        view_path(tmp_path / "nothing")
    assert not (tmp_path / "a.html").exists()
