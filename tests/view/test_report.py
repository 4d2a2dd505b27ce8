from __future__ import annotations

import json
import shutil

import pytest

from mm3dad import files
from mm3dad.errors import DataError
from mm3dad.view.gallery import pick_rows
from mm3dad.view.outputs import Row
from mm3dad.view.report import write_report
from tests.view.parts import check_offline, make_evaluation, make_rows


def test_report_of_an_evaluation_has_every_part(tmp_path):
    make_evaluation(tmp_path / "data", tmp_path / "out")
    path = write_report(tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    page = check_offline(path.read_text(encoding="utf-8"))
    for words in (
        "duet on folder", "0.987", "± 0.012", "[0.951, 0.999]", "0.934", "12.3 MB", "15", "Apache-2.0", "2.14.0", "grouping",
        "mm3dad evaluate duet --root 'my data'", "every run (2)", "good, highest scores", "defective, lowest scores", "typical hits",
        "dent", "cut", "AUROC against good", "over the threshold", "ROC", "precision and recall", "region overlap (PRO)", "threshold 2",
        "no defects <small> enough",
    ):  # fmt: skip
        assert words in page.words, words
    pictures = page.all("img")
    kinds = {"cloud": "webp"}  # nothing behind it: the page may be dark
    assert all(one["src"].startswith(f"data:image/{kinds.get(one['alt'].split(' of ')[0], 'jpeg')};") for one in pictures)
    assert all(one["loading"] == "lazy" and one["width"] and one["alt"] for one in pictures)
    assert {one["alt"].split(" of ")[0] for one in pictures} == {"RGB", "cloud", "score map", "ground truth"}
    assert len(page.all("svg")) == 4
    assert "prefers-color-scheme: dark" in page.raw and "@media print" in page.raw and "width=device-width" in page.raw


def test_a_transductive_result_says_so(tmp_path):
    result = make_evaluation(tmp_path / "data", tmp_path / "out")
    assert "Transductive" not in check_offline(write_report(tmp_path / "out").read_text()).words
    files.write_json(tmp_path / "out" / "evaluate.json", {**result, "protocol": {**result["protocol"], "transductive": True}})
    words = check_offline(write_report(tmp_path / "out").read_text()).words
    assert "Transductive: every score depends on the other samples of the test set." in words


def test_several_shots_have_a_table_each(tmp_path):
    result = make_evaluation(tmp_path / "data", tmp_path / "out")
    table = {"categories": result["categories"], "mean": result["mean"]}
    files.write_json(tmp_path / "out" / "evaluate.json", {**result, "by_shots": {"full": table, "4": table}, "complete": False})
    words = check_offline(write_report(tmp_path / "out").read_text()).words
    assert "all training samples" in words and "4-shot" in words and "not finished" in words


def test_runs_of_another_evaluation_in_the_folder_are_left_out(tmp_path):
    make_evaluation(tmp_path / "data", tmp_path / "out")
    stray = tmp_path / "out" / "runs" / "alien-seed0-full"
    files.write_json(stray / "run.json", {"category": "alien", "seed": 0, "shots": None, "metrics": {}, "samples": []})
    assert "alien" not in write_report(tmp_path / "out").read_text()


@pytest.mark.parametrize(
    "name", ["config", "weights", "versions", "command", "protocol", "mean", "categories", "dataset", "runs", "mm3dad", "arguments"]
)
@pytest.mark.parametrize("value", [None, [], "x"])
def test_parts_that_are_missing_or_odd_do_not_stop_the_report(tmp_path, name, value):
    files.write_json(tmp_path / "evaluate.json", {"method": "duet", "mean": {}, "categories": {}, "runs": [], name: value})
    check_offline(write_report(tmp_path).read_text())


def test_moved_pictures_are_said_and_kept_maps_still_shown(tmp_path):
    make_evaluation(tmp_path / "data", tmp_path / "out")
    shutil.rmtree(tmp_path / "data")
    page = check_offline(write_report(tmp_path / "out").read_text())
    assert "picture not available" in page.words
    assert {one["alt"].split(" of ")[0] for one in page.all("img")} == {"score map", "ground truth"}


def test_missing_or_damaged_maps(tmp_path):
    make_evaluation(tmp_path / "data", tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.safetensors"):
        path.unlink() if "good" in path.name else path.write_bytes(b"damaged")
    page = check_offline(write_report(tmp_path / "out").read_text())
    assert {one["alt"].split(" of ")[0] for one in page.all("img")} == {"RGB", "cloud", "ground truth"}


def test_missing_modality(tmp_path):
    make_evaluation(tmp_path / "data", tmp_path / "out")
    for path in (tmp_path / "data").rglob("*.tiff"):
        path.unlink()
    page = check_offline(write_report(tmp_path / "out").read_text())
    assert {one["alt"].split(" of ")[0] for one in page.all("img")} == {"RGB", "score map", "ground truth"}


def test_predictions_without_labels_have_no_curves(tmp_path):
    rows = make_rows(tmp_path / "data", tmp_path, threshold=None)
    rows = [{key: row[key] for key in ("id", "score", "threshold", "calibrated", "paths", "file")} for row in rows]
    files.write_json(tmp_path / "predictions.json", rows)
    page = check_offline(write_report(tmp_path, tmp_path / "other" / "r.html").read_text())
    assert "ROC" not in page.words and len(page.all("svg")) == 1
    assert "highest scores" in page.words and "no threshold" in page.words and page.all("img")


def test_no_predictions_at_all(tmp_path):
    files.write_json(tmp_path / "predictions.json", [])
    assert "No scored samples" in check_offline(write_report(tmp_path).read_text()).words


def test_everything_is_escaped(tmp_path):
    bad = "<script>alert('&\"')</script>"
    make_evaluation(
        tmp_path / "data", tmp_path / "out", method=bad, command=bad, config={bad: [bad]}, weights=[{"name": bad}], versions={bad: bad}
    )
    for path in (tmp_path / "out").rglob("run.json"):
        run = json.loads(path.read_text())
        run["samples"] = [{**row, "id": bad + row["id"], "defect": bad if row["label"] else "good"} for row in run["samples"]]
        files.write_json(path, run)
    page = check_offline(write_report(tmp_path / "out").read_text())
    assert not page.all("script") and "<script>" not in page.raw and bad in page.words


def test_a_large_result_stays_small(tmp_path):
    rows = make_rows(tmp_path / "data", tmp_path)
    many = [{**row, "id": f"{row['id']}-{index}", "score": row["score"] + index} for index in range(170) for row in rows]
    files.write_json(tmp_path / "predictions.json", many)
    assert write_report(tmp_path).stat().st_size < 2_000_000


def test_rows_with_lost_scores_are_refused_in_one_line(tmp_path):
    files.write_json(tmp_path / "predictions.json", [{"id": "a"}])
    with pytest.raises(DataError, match="without a readable id and score"):
        write_report(tmp_path)
    (tmp_path / "predictions.json").write_text("[{")
    with pytest.raises(DataError, match="JSON"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="found neither"):
        write_report(tmp_path / "nothing")
    files.write_json(tmp_path / "evaluate.json", [1])
    with pytest.raises(DataError, match="JSON object"):
        write_report(tmp_path)


def row(score: float, label: int | None, defect: str | None = None) -> Row:
    return Row(f"{defect}-{score}", "plate", label, defect, score, None)


def test_picks_are_the_errors_first_and_each_row_once():
    rows = [row(score, 0, "good") for score in range(5)] + [row(score + 3, 1, ("cut", "dent")[score % 2]) for score in range(8)]
    picked = pick_rows(rows, 2)
    assert [one.score for one in picked["good, highest scores"]] == [4, 3]
    assert [one.score for one in picked["defective, lowest scores"]] == [3, 4]
    assert {one.defect for one in picked["typical hits"]} == {"cut", "dent"}
    names = [one.id for found in picked.values() for one in found]
    assert len(names) == len(set(names))
    assert [one.score for one in pick_rows([row(1, None), row(2, None), row(float("nan"), None)], 1)["lowest scores"]] == [1]


def test_predictions_say_where_they_come_from(tmp_path):
    files.write_json(tmp_path / "predictions.json", make_rows(tmp_path / "data", tmp_path))
    about = {"mm3dad": "0.1.0", "method": "duet", "bank_bytes": 1_500_000, "versions": {"torch": "2.14.0"}, "command": "mm3dad predict m x"}
    files.write_json(
        tmp_path / "predict.json", {**about, "weights": [{"name": "lite0", "licence": "Apache-2.0"}], "failures": {"a.png": "cut"}}
    )
    words = check_offline(write_report(tmp_path).read_text()).words
    for part in ("mm3dad predict m x", "2.14.0", "Apache-2.0", "predict p50", "predict p95", "1.5 MB", "a.png", "by defect", "ROC"):
        assert part in words, part
