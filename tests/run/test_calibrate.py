from __future__ import annotations

import json
import shutil

import pytest

import mm3dad
from mm3dad import files
from mm3dad.cli import main
from mm3dad.errors import ConfigError, DataError, ModelError, StorageError
from mm3dad.run.calibrate import calibrate_model, choose_point
from mm3dad.run.fit import fit_detector
from tests.run import toy

toy.register()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = toy.write_tree(tmp_path_factory.mktemp("tree"), ["nut"])
    toy.write_tree(root, ["bolt"], roles=("rgb",))
    return root


@pytest.fixture(scope="module")
def fitted(tree):
    fit_detector("toy", "mvtec3d", tree, tree.parent / "toy-model", categories=["nut"])
    return tree.parent / "toy-model"


@pytest.fixture
def model(fitted, tmp_path):
    return shutil.copytree(fitted, tmp_path / "model")


def test_the_point_is_kept_and_judges_every_prediction(tree, model):
    before = mm3dad.load(model).predict(mm3dad.open_dataset("mvtec3d", tree, "nut", "test")[0])
    assert before.p_value is None
    result = calibrate_model(model, "mvtec3d", tree, categories=["nut"], false_alarms=0.4, pixel_area=0.01)
    assert result == json.loads((model / "calibrate.json").read_text())
    assert result["normals"] == 2 and result["normals_needed"] == 2 and result["split"] == "validation" and len(result["samples"]) == 2
    detector = mm3dad.load(model)
    samples = list(mm3dad.open_dataset("mvtec3d", tree, "nut", "test"))
    for predictions in (detector.predict_batch(samples), detector.predict_all(samples), [detector.predict(sample) for sample in samples]):
        for prediction in predictions:
            assert prediction.threshold == result["threshold"] and prediction.pixel_threshold == result["pixel_threshold"]
            assert prediction.is_anomaly == (prediction.score > result["threshold"]) and prediction.calibrated
            assert 1 / 3 <= prediction.p_value <= 1
    assert predictions[0].score == before.score
    again = mm3dad.load(detector.save(model.parent / "copy"))
    assert again.operating_point == detector.operating_point
    again.fit(samples)
    assert again.operating_point is None and again.predict(samples[0]).p_value is None


def test_a_sample_without_a_modality_keeps_the_methods_own_threshold(tree, model):
    calibrate_model(model, "mvtec3d", tree, categories=["nut"], false_alarms=0.4)
    sample = mm3dad.open_dataset("mvtec3d", tree, "nut", "test", modalities="rgb")[0]
    assert mm3dad.load(model).predict(sample).p_value is None


def test_f1_takes_labelled_samples(tree, model):
    result = calibrate_model(model, "mvtec3d", tree, categories=["nut"], split="test")
    assert result["rule"] == "f1" and result["recall"] == 1 and result["false_alarms"] == 0 and result["normals"] == 3
    with pytest.raises(DataError, match="needs normal and defective samples, validation of nut has no defective ones; choose another"):
        calibrate_model(model, "mvtec3d", tree, categories=["nut"])


def test_bad_requests_leave_the_model_as_it_was(tree, model, monkeypatch):
    kept = {path.name: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(DataError, match="take at least 99 held-out normal samples, got 2"):
        calibrate_model(model, "mvtec3d", tree, categories=["nut"], false_alarms=0.01)
    with pytest.raises(ConfigError, match="pixel_area must lie between"):
        calibrate_model(model, "mvtec3d", tree, categories=["nut"], false_alarms=0.4, pixel_area=7)
    with pytest.raises(DataError, match="has no category 'nutt'; did you mean 'nut'"):
        calibrate_model(model, "mvtec3d", tree, categories=["nutt"], false_alarms=0.4)
    with pytest.raises(DataError, match="must have the same modalities, got some with"):
        calibrate_model(model, "mvtec3d", tree, categories=["nut", "bolt"], false_alarms=0.4)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", lambda path, value: (_ for _ in ()).throw(StorageError("disk full")))
        with pytest.raises(StorageError):
            calibrate_model(model, "mvtec3d", tree, categories=["nut"], false_alarms=0.4)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == kept


def test_a_transductive_method_is_refused(tree):
    samples = list(mm3dad.open_dataset("mvtec3d", tree, "nut", "validation"))
    with pytest.raises(ConfigError, match="no threshold carries over"):
        choose_point(mm3dad.create("toyset").fit(samples), samples, false_alarms=0.4)


def test_models_without_a_point_load_and_a_damaged_point_does_not(tree, model):
    state = json.loads((model / "model.json").read_text())
    old = {name: value for name, value in state.items() if name != "operating_point"}
    files.write_json(model / "model.json", old)  # as written before there were operating points
    assert mm3dad.load(model).operating_point is None
    files.write_json(model / "model.json", {**state, "operating_point": {"threshold": 1}})
    with pytest.raises(ModelError, match="run `mm3dad calibrate` again"):
        mm3dad.load(model)


def test_the_verb_says_what_is_promised(tree, model, tmp_path, capsys):
    words = ["calibrate", str(model), "--dataset", "mvtec3d", "--root", str(tree), "--category", "nut"]
    assert main([*words, "--false-alarms", "0.4", "--pixel-area", "0.02", "--json", str(tmp_path / "c.json")]) == 0
    text = capsys.readouterr().out
    assert "from 2 good parts of validation" in text and "33.33% of good parts on average" in text and "pixel threshold" in text
    assert json.loads((tmp_path / "c.json").read_text())["asked"] == {"false_alarms": 0.4, "pixel_area": 0.02}
    assert main([*words, "--f1", "--split", "test"]) == 0
    assert "finds 100.0% of the defective parts" in (text := capsys.readouterr().out) and "flatter from now on" in text
    assert main(["predict", str(model), str(tree / "nut/test/dent/rgb/000.png")]) == 0
    assert ", p 0.25: defective" in capsys.readouterr().out


@pytest.mark.parametrize("rule", [[], ["--f1", "--false-alarms", "0.1"], ["--false-alarms", "1"], ["--false-alarms", "x"]])
def test_the_verb_takes_one_rule(rule, capsys):
    assert main(["calibrate", "m", "--dataset", "folder", "--root", "r", "--category", "c", *rule]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
