"""The drift report: parts beside the normal samples of the model that scored them."""

from __future__ import annotations

import json

import pytest
import torch

import mm3dad
from mm3dad import files
from mm3dad.cli import main
from mm3dad.data import degrade
from mm3dad.errors import ConfigError, DataError
from mm3dad.run.drift import measure_drift
from mm3dad.run.fit import fit_detector
from mm3dad.run.rows import describe_row
from tests.methods.parts import SMALL, make_samples
from tests.run import toy

toy.register()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift") / "model"
    mm3dad.create("duet", **SMALL).fit(make_samples(20)).save(folder)
    return folder


@pytest.fixture(scope="module")
def rows(model):
    """Parts as the normal ones, and the same seen by a depth sensor ten times as noisy."""
    detector, parts = mm3dad.load(model), make_samples(24, first=100)
    worse = [degrade.add_depth_noise(sample, 1e-4) for sample in parts]
    return [[describe_row(sample, detector.predict(sample), 1.0) for sample in some] for some in (parts, worse)]


def test_parts_as_before_have_not_moved(model, rows, tmp_path):
    files.write_json(tmp_path / "predictions.json", rows[0])
    result, values = measure_drift(model, tmp_path)
    assert (result["parts"], result["normals"]) == (24, 20) and values.keys() == mm3dad.load(model).describe_normals().keys()
    assert {"rgb_score", "xyz_gap", "rgb_condition", "rgb_brightness", "xyz_roughness"} <= values.keys()
    assert not result["recording"]["moved"] and result["recording"]["p_value"] > result["recording"]["calibrated"] == 0.05
    outside = result["outside"]
    assert not outside["exceeded"] and outside["interval"][0] <= outside["share"] <= outside["interval"][1]
    assert outside["of"] == sum(one["of"] for one in outside["stretches"]) == 24 and outside["calibrated"] == 0.05
    for name, row in result["quantities"].items():
        normals, parts = values[name]
        wins = (parts[:, None] > normals).mean() + 0.5 * (parts[:, None] == normals).mean()
        assert row["exceeds"] == pytest.approx(wins) and row["moved"] == (not row["interval"][0] <= 0.5 <= row["interval"][1])


def test_a_noisy_depth_sensor_shows_in_its_modality_alone(model, rows, tmp_path, capsys):
    for row in (*rows[0], *rows[1], {"id": "broken", "error": "cannot be read"}):
        files.append_line(tmp_path / "watch.jsonl", row)
    result, _ = measure_drift(model, tmp_path / "watch.jsonl")
    assert result["parts"] == 48 and result["outside"]["exceeded"]
    first, last = result["outside"]["stretches"]
    assert first["count"] < last["count"] == last["of"]
    only, _ = measure_drift(model, _write(tmp_path / "late.json", rows[1]))
    assert only["quantities"]["xyz_gap"]["moved"] and only["quantities"]["xyz_gap"]["exceeds"] > 0.9
    assert only["recording"]["moved"] and only["quantities"]["xyz_roughness"]["exceeds"] > 0.9
    before, _ = measure_drift(model, _write(tmp_path / "early.json", rows[0]))
    assert only["quantities"]["rgb_gap"] == before["quantities"]["rgb_gap"]  # the pictures are the same
    words = ["drift", str(model), str(tmp_path), "--json", str(tmp_path / "drift.json"), "--html", str(tmp_path / "drift.html")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "calibrated for at most 5.00%, which is exceeded" in told and "xyz_gap: moved" in told
    assert "the recording (light, focus, measured points, distance, noise) is other than that of the normal samples: p-value" in told
    assert json.loads((tmp_path / "drift.json").read_text())["quantities"] == result["quantities"]
    page = (tmp_path / "drift.html").read_text()
    assert page.count("<svg") == 1 + len(result["quantities"]) and "which is exceeded" in page and "src=" not in page


def _write(path, rows):
    files.write_json(path, rows)
    return path


def test_normals_are_described_as_they_set_the_threshold(model):
    detector = mm3dad.load(model)
    normals = detector.describe_normals()
    assert {len(values) for values in normals.values()} == {20}
    for name in ("rgb", "xyz"):
        assert torch.equal(normals[f"{name}_gap"], detector._parts[name].bank.gaps)
        assert float(normals[f"{name}_score"].max()) == pytest.approx(detector._thresholds[name], rel=1e-6)  # 1 % of 20: the highest


def test_what_cannot_be_compared(model, rows, tmp_path):
    with pytest.raises(DataError, match=r"expected predictions.json or watch.jsonl in .*, found neither; give the --out folder"):
        measure_drift(model, tmp_path)
    with pytest.raises(DataError, match=r"expected rows of scored parts in .*, found dict; give what predict wrote"):
        measure_drift(model, _write(tmp_path / "other.json", {"a": 1}))
    for found in ([], [{"id": "a", "error": "gone"}], [{"id": "a", "score": 1.0, "is_outside": None}]):
        with pytest.raises(DataError, match="no part with a word on whether it lies outside; score parts with this model first"):
            measure_drift(model, _write(tmp_path / "empty.json", found))
    older = [{key: value for key, value in row.items() if key != "parts"} for row in rows[0]]
    with pytest.raises(DataError, match="lack scores of the modalities; score the parts again with this version"):
        measure_drift(model, _write(tmp_path / "older.json", older))
    known = ("rgb_score", "rgb_gap", "xyz_score", "xyz_gap")
    older = [{**row, "parts": {name: row["parts"][name] for name in known}} for row in rows[0]]  # from before the recording was described
    assert measure_drift(model, _write(tmp_path / "old.json", older))[0]["recording"] is None
    tree = toy.write_tree(tmp_path / "tree", ("nut",))
    fit_detector("toy", "mvtec3d", tree, tmp_path / "toy", categories=["nut"])
    with pytest.raises(ConfigError, match="toy keeps no scores of its normal samples to compare others with; give a model of duet"):
        measure_drift(tmp_path / "toy", _write(tmp_path / "rows.json", rows[0]))
    assert main(["drift", str(model), str(tmp_path / "nothing.json")]) == 2


def test_one_part_is_enough_and_says_little(model, rows, tmp_path):
    result, _ = measure_drift(model, _write(tmp_path / "one.json", rows[0][:1]))
    low, high = result["outside"]["interval"]
    assert result["parts"] == 1 and low == 0 and high > 0.9 and len(result["outside"]["stretches"]) == 1
