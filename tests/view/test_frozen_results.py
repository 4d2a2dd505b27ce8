"""Results that earlier versions wrote are read: rows, maps, report.

`tests/frozen_results/format1` was written by 0.1.0 (`duet` on clouds of 32 x 32 points; without its reports and pictures). A change that
cannot read it raises `files.RESULT_FORMAT` and adds a folder of its own here; the readers keep what they read.
"""

from __future__ import annotations

import json

import pytest

from mm3dad import files
from mm3dad.view import write_report
from mm3dad.view.browse import list_entries
from mm3dad.view.outputs import read_maps, read_output
from tests.conftest import ROOT
from tests.view.parts import check_offline

FROZEN = sorted((ROOT / "tests" / "frozen_results").iterdir())
IDS = ["test/dent/006", "test/dent/007", "test/good/004", "test/good/005"]


def test_there_is_one_of_every_format():
    assert [folder.name for folder in FROZEN] == [f"format{number + 1}" for number in range(files.RESULT_FORMAT)]


@pytest.mark.parametrize("folder", FROZEN, ids=lambda folder: folder.name)
def test_a_kept_evaluation_is_read(folder, tmp_path):
    output = read_output(folder / "evaluate")
    (run,) = output.runs
    kept = json.loads((folder / "evaluate/runs/plate-seed0-full/run.json").read_text())["samples"]
    assert (output.kind, run.category, run.seed, run.shots) == ("evaluate", "plate", 0, "full")
    assert [(row.id, row.score, row.label) for row in run.rows] == [(row["id"], row["score"], row["label"]) for row in kept]
    assert [row.id for row in run.rows] == IDS and [row.label for row in run.rows] == [1, 1, 0, 0]
    for row in run.rows:
        maps = read_maps(row)
        assert {name: values.shape for name, values in maps.items()} == dict.fromkeys(("map", "xyz_map", "mask"), (32, 32))
        assert bool(maps["mask"].any()) == bool(row.label)
    page = check_offline(write_report(folder / "evaluate", tmp_path / "report.html").read_text())
    assert "duet on folder" in page.words and "region overlap (PRO)" in page.words and "1.000" in page.words
    assert [entry.kind for entry in list_entries(folder / "evaluate")] == ["found", "found", "passed", "passed"]


@pytest.mark.parametrize("folder", FROZEN, ids=lambda folder: folder.name)
def test_kept_predictions_are_read(folder, tmp_path):
    output = read_output(folder / "predict")
    (run,) = output.runs
    kept = json.loads((folder / "predict/predictions.json").read_text())
    assert output.kind == "predict" and output.result["method"] == "duet"
    assert [(row.id, row.score, row.threshold) for row in run.rows] == [(row["id"], row["score"], row["threshold"]) for row in kept]
    page = check_offline(write_report(folder / "predict", tmp_path / "report.html").read_text())
    assert "2 of 4" in page.words and all(name in page.words for name in IDS)
