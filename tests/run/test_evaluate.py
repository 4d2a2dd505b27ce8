from __future__ import annotations

import csv
import errno
import json
import os

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import mm3dad
from mm3dad import files
from mm3dad.errors import ConfigError, DataError, Mm3dadError, ModelError, StorageError
from mm3dad.run.evaluate import default_out, evaluate
from mm3dad.run.fit import fit_detector
from mm3dad.run.measure import parse_eval_size
from mm3dad.run.table import METRICS, summarise
from mm3dad.types import Meta, Sample
from tests.run import toy

toy.register()
GRID = {"seeds": (0, 1), "shots": (None, 2), "eval_size": 16}
ONE = {"categories": ["nut"], "eval_size": 16}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return toy.write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    """A whole evaluation: its result and its folder; tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return evaluate("toy", "mvtec3d", tree, out=out, **GRID), out


@pytest.fixture
def copied(finished, tmp_path):
    import shutil

    shutil.copytree(finished[1], tmp_path / "out")
    return finished[0], tmp_path / "out"


def without_times(result):
    """The result without what differs from run to run: seconds and bytes of the process."""
    plain = json.loads(json.dumps(result))

    def clean(node):
        if isinstance(node, dict):
            changing = ("fit_seconds", "predict_ms_p50", "predict_ms_p95", "peak_rss_bytes")
            return {key: clean(value) for key, value in node.items() if key not in changing}
        return [clean(value) for value in node] if isinstance(node, list) else node

    return clean(plain)


def test_the_json_has_the_schema_of_the_protocol(finished, tree):
    result, out = finished
    assert json.loads((out / "evaluate.json").read_text()) == json.loads(json.dumps(result))
    named = {
        "mm3dad",
        "method",
        "config",
        "dataset",
        "weights",
        "protocol",
        "versions",
        "runs",
        "categories",
        "mean",
        "arguments",
        "command",
    }
    assert named <= result.keys() and result["complete"]
    assert result["method"] == "toy" and result["dataset"]["name"] == "mvtec3d" and "seed" not in result["config"]
    assert result["protocol"]["eval_size"] == 16 and result["protocol"]["shots"] == ["full", "2"]
    assert [(run["category"], run["seed"], run["shots"]) for run in result["runs"]] == [
        (category, seed, shots) for category in ("bolt", "nut") for seed in (0, 1) for shots in (None, 2)
    ]
    for table in (result, *result["by_shots"].values()):
        assert list(table["categories"]) == ["bolt", "nut"]
        for row in (*table["categories"].values(), table["mean"]):
            assert set(METRICS) <= row.keys() and set(row["std"]) == set(METRICS)
            assert row["samples"] == 6 and all(isinstance(row[name], int) for name in ("samples", "bank_bytes", "peak_rss_bytes"))
            assert row["image_auroc"] > 0.9 and row["aupro_30"] > 0.9
    assert result["categories"] == result["by_shots"]["full"]["categories"]
    low, high = result["categories"]["nut"]["image_auroc_ci"]
    assert 0 <= low <= result["runs"][4]["metrics"]["image_auroc"] <= high <= 1
    assert f"evaluate toy --dataset mvtec3d --root {tree} --category bolt --category nut --shots full,2 --seeds 0,1" in result["command"]


def test_means_are_over_seeds_then_over_categories(finished):
    result, _ = finished
    values = {(r["category"], r["seed"]): r["metrics"]["pixel_ap"] for r in result["runs"] if r["shots"] is None}
    for category in ("bolt", "nut"):
        own = [values[category, seed] for seed in (0, 1)]
        assert result["categories"][category]["pixel_ap"] == pytest.approx(np.mean(own))
        assert result["categories"][category]["std"]["pixel_ap"] == pytest.approx(np.std(own, ddof=1))
    assert result["mean"]["pixel_ap"] == pytest.approx(np.mean(list(values.values())))
    per_seed = [np.mean([values[category, seed] for category in ("bolt", "nut")]) for seed in (0, 1)]
    assert result["mean"]["std"]["pixel_ap"] == pytest.approx(np.std(per_seed, ddof=1))


def test_an_undefined_metric_is_never_averaged_away():
    row = dict.fromkeys(METRICS, 0.5)
    runs = [
        {"category": "a", "seed": 0, "shots": None, "metrics": row},
        {"category": "b", "seed": 0, "shots": None, "metrics": {**row, "aupro_30": None}},
    ]
    table = summarise(runs)
    assert table["categories"]["a"]["aupro_30"] == 0.5 and table["mean"]["aupro_30"] is None and table["mean"]["image_auroc"] == 0.5
    assert table["mean"]["std"]["image_auroc"] is None  # one seed has no spread


def test_runs_keep_scores_and_maps(finished, tree):
    result, out = finished
    folder = out / "runs" / "nut-seed1-2shot"
    assert result["runs"][-1]["folder"] == "runs/nut-seed1-2shot"
    run = json.loads((folder / "run.json").read_text())
    assert (run["category"], run["seed"], run["shots"]) == ("nut", 1, 2) and len(run["fitted_on"]) == 2
    assert roc_auc_score([s["label"] for s in run["samples"]], [s["score"] for s in run["samples"]]) == run["metrics"]["image_auroc"]
    for sample in run["samples"]:
        assert {"id", "label", "defect", "score", "threshold", "calibrated", "predict_ms", "paths", "file"} == sample.keys()
        tensors = files.read_tensors(folder / sample["file"])
        assert {"map", "mask", "rgb_map", "xyz_map"} == tensors.keys()
        assert tensors["map"].shape == (16, 16) and tensors["map"].dtype == torch.float32 and tensors["mask"].dtype == torch.bool
        assert bool(tensors["mask"].any()) == bool(sample["label"])
        assert os.path.isabs(sample["paths"]["rgb"]) and os.path.isfile(sample["paths"]["rgb"])


def test_the_csv_says_the_same(finished):
    result, out = finished
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(row["shots"], row["category"]) for row in rows] == [(k, c) for k in ("full", "2") for c in ("bolt", "nut", "mean")]
    assert float(rows[1]["image_auroc"]) == result["categories"]["nut"]["image_auroc"]
    assert float(rows[5]["aupro_01_std"]) == result["by_shots"]["2"]["mean"]["std"]["aupro_01"]


def test_a_second_call_predicts_nothing_and_says_the_same(copied, tree, tmp_path):
    result, out = copied
    fits, predictions = toy.Toy.fits, toy.Toy.predictions
    again = evaluate("toy", "mvtec3d", tree, out=out, json_path=tmp_path / "r.json", **GRID)
    assert (toy.Toy.fits, toy.Toy.predictions) == (fits, predictions)
    assert again == result == json.loads((tmp_path / "r.json").read_text())


@pytest.mark.parametrize("lost", ["run.json", "maps/test__good__001.safetensors"])
def test_an_interrupted_run_is_done_again_alone(copied, tree, lost):
    result, out = copied
    (out / "runs" / "nut-seed1-full" / lost).unlink()
    fits, predictions = toy.Toy.fits, toy.Toy.predictions
    again = evaluate("toy", "mvtec3d", tree, out=out, **GRID)
    assert (toy.Toy.fits - fits, toy.Toy.predictions - predictions) == (1, 6 + 0)
    assert without_times(again) == without_times(result)


def test_an_interruption_keeps_what_is_finished(tree, tmp_path, monkeypatch):
    plain = toy.Toy.predict_batch
    calls = []

    def stop(self, samples):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return plain(self, samples)

    monkeypatch.setattr(toy.Toy, "predict_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", json_path=tmp_path / "r.json", eval_size=16)
    partial = json.loads((tmp_path / "out/evaluate.json").read_text())
    assert list(partial["categories"]) == ["bolt"] and not partial["complete"]
    assert not (tmp_path / "r.json").exists()  # a script that reads it never takes a part for the whole
    assert not (tmp_path / "out/runs/nut-seed0-full/run.json").exists()
    result = evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", json_path=tmp_path / "r.json", eval_size=16)
    assert len(calls) == 9 + 6 and list(result["categories"]) == ["bolt", "nut"] and result["complete"]


def test_seeds_and_categories_can_be_added(copied, tree):
    _, out = copied
    fits = toy.Toy.fits
    result = evaluate("toy", "mvtec3d", tree, out=out, **{**GRID, "seeds": (0, 2), "shots": (2,)})
    assert toy.Toy.fits - fits == 2 and len(result["runs"]) == 4
    assert len(evaluate("toy", "mvtec3d", tree, categories=["nut"], out=out, **GRID)["runs"]) == 4
    assert toy.Toy.fits - fits == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"gain": "3"}}, r"config.gain = 1.0, now it is 3.0; use --overwrite or another --out"),
        ({"eval_size": 24}, r"eval_size = 16, now it is 24; use"),
        ({"method": "toyset"}, r'method = "toy", now it is "toyset"; use'),
        ({"multiclass": True}, r'fitted_together = null, now it is \["bolt", "nut"\]'),
    ],
)
def test_other_arguments_in_the_same_folder_are_refused(copied, tree, change, message):
    result, out = copied
    fits = toy.Toy.fits
    with pytest.raises(ConfigError, match=message):
        evaluate(**{"method": "toy", "dataset": "mvtec3d", "root": tree, "out": out, **GRID, **change})
    assert toy.Toy.fits == fits and json.loads((out / "evaluate.json").read_text()) == json.loads(json.dumps(result))


def test_overwrite_starts_again(copied, tree):
    _, out = copied
    result = evaluate("toy", "mvtec3d", tree, out=out, options={"gain": 3}, overwrite=True, **ONE)
    assert result["config"]["gain"] == 3.0 and result["complete"]
    assert evaluate("toy", "mvtec3d", tree, out=out, options={"gain": 3}, **ONE) == result


def test_changed_files_and_a_new_version_are_noticed(tree, tmp_path, monkeypatch):
    root = toy.write_tree(tmp_path / "data", ["nut"])
    evaluate("toy", "mvtec3d", root, out=tmp_path / "out", eval_size=16)
    monkeypatch.setattr(mm3dad, "__version__", "99.0")
    with pytest.raises(ConfigError, match='mm3dad = .*, now it is "99.0"; --rescore keeps its predictions'):
        evaluate("toy", "mvtec3d", root, out=tmp_path / "out", eval_size=16)
    assert evaluate("toy", "mvtec3d", root, out=tmp_path / "out", eval_size=16, rescore=True)["mm3dad"] == "99.0"
    os.utime(root / "nut/test/dent/xyz/001.tiff", (1, 1))
    with pytest.raises(ConfigError, match="test_files"):
        evaluate("toy", "mvtec3d", root, out=tmp_path / "out", eval_size=16)


def test_rescore_measures_kept_maps_without_predicting(copied, tree):
    result, out = copied
    predictions = toy.Toy.predictions
    assert without_times(evaluate("toy", "mvtec3d", tree, out=out, rescore=True, **GRID)) == without_times(result)
    result = evaluate("toy", "mvtec3d", tree, out=out, **ONE)
    path = out / "runs/nut-seed0-full/maps/test__good__000.safetensors"
    tensors = files.read_tensors(path)
    files.write_tensors(path, {**tensors, "map": tensors["map"] + 100})
    changed = evaluate("toy", "mvtec3d", tree, out=out, rescore=True, **ONE)
    assert changed["categories"]["nut"]["pixel_auroc"] < result["categories"]["nut"]["pixel_auroc"]
    assert changed["categories"]["nut"]["fit_seconds"] == result["categories"]["nut"]["fit_seconds"]
    assert toy.Toy.predictions == predictions
    path.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"kept map of 'test/good/000'.*run again with --overwrite"):
        evaluate("toy", "mvtec3d", tree, out=out, rescore=True, **ONE)
    path.unlink()
    with pytest.raises(DataError, match="expected kept predictions .* run once without --rescore"):
        evaluate("toy", "mvtec3d", tree, out=out, rescore=True, **ONE)


def test_a_damaged_run_is_named_and_overwrite_cures_it(copied, tree):
    _, out = copied
    path = out / "runs/nut-seed0-full/run.json"
    for text in (path.read_text()[:100], "[]", '{"samples": []}'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"run.json is damaged or foreign .* use --overwrite"):
            evaluate("toy", "mvtec3d", tree, out=out, **ONE)
    assert evaluate("toy", "mvtec3d", tree, out=out, overwrite=True, **ONE)["complete"]


def test_a_full_disk_loses_nothing_that_was_finished(tree, tmp_path, monkeypatch):
    plain = os.fsync
    calls = []

    def fill(descriptor):
        calls.append(1)
        if len(calls) > 26:  # the file and its folder, for each of 13 files
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fill)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", eval_size=16)
    assert caught.value.exit_status == 1
    assert not list((tmp_path / "out").rglob("*.part"))
    assert list(json.loads((tmp_path / "out/evaluate.json").read_text())["categories"]) == ["bolt"]
    fits = toy.Toy.fits
    assert evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", eval_size=16)["complete"] and toy.Toy.fits - fits == 1


def test_the_driver_asks_for_the_weights_once(tree, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(toy.Toy, "weights", property(lambda self: asked.append(self) or []))  # real ones load their networks to tell
    assert len(evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", seeds=(0, 1), eval_size=16)["runs"]) == 4
    assert len(asked) == 1


def test_one_model_for_all_categories_is_fitted_once_per_seed(tree, tmp_path):
    fits = toy.Toy.fits
    result = evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", multiclass=True, seeds=(0, 1), eval_size=16)
    assert toy.Toy.fits - fits == 2 and len(result["runs"]) == 4 and result["protocol"]["models"] == "one model for all categories"
    run = json.loads((tmp_path / "out/runs/nut-seed0-full/run.json").read_text())
    assert run["fitted_on"][0] == "bolt/train/good/000" and len(run["fitted_on"]) == 12
    assert all(sample["id"].startswith("test/") for sample in run["samples"])
    (tmp_path / "out/runs/nut-seed0-full/run.json").unlink()
    predictions = toy.Toy.predictions
    assert without_times(
        evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", multiclass=True, seeds=(0, 1), eval_size=16)
    ) == without_times(result)
    assert toy.Toy.predictions - predictions == 6


def test_a_transductive_method_sees_the_whole_set_and_is_marked(tree, tmp_path):
    result = evaluate("toyset", "mvtec3d", tree, categories=["nut"], out=tmp_path / "out", eval_size=16)
    run = json.loads((tmp_path / "out/runs/nut-seed0-full/run.json").read_text())
    assert min(sample["score"] for sample in run["samples"]) == 0 and result["protocol"]["transductive"]
    assert next(csv.DictReader((tmp_path / "out/table.csv").open()))["transductive"] == "yes"


def test_a_zero_shot_method_is_fitted_on_nothing_and_marked(tree, tmp_path):
    small = {"centers": 16, "group_size": 16, "max_points": 600, "image_size": 64}
    result = evaluate("muscv2", "mvtec3d", tree, categories=["nut"], out=tmp_path / "out", eval_size=16, options=small)
    run = json.loads((tmp_path / "out/runs/nut-seed0-full/run.json").read_text())
    assert run["fitted_on"] == [] and result["protocol"]["zero_shot"] and result["protocol"]["transductive"]
    with pytest.raises(ConfigError, match="muscv2 is zero-shot and learns from no normal sample; leave --shots out"):
        evaluate("muscv2", "mvtec3d", tree, categories=["nut"], shots=(4,), out=tmp_path / "other", options=small)


def test_native_size_keeps_the_samples_own(tree, tmp_path):
    evaluate("toy", "mvtec3d", tree, categories=["nut"], out=tmp_path / "out", eval_size="native")
    assert files.read_tensors(tmp_path / "out/runs/nut-seed0-full/maps/test__good__000.safetensors")["map"].shape == (32, 32)


@pytest.mark.parametrize("value", ["natve", 0, 7, -224, "1.5", 2.5, True, None])
def test_eval_size_out_of_range(value):
    with pytest.raises(ConfigError, match="eval_size must be a whole number of pixels, at least 8, or native"):
        parse_eval_size(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": (None, 2, 9)}, "between 1 and the 6 training samples"),
        ({"seeds": ()}, "at least one seed"),
        ({"overwrite": True, "rescore": True}, "exclude each other"),
        ({"options": {"eval_sise": "3"}}, "unknown option 'eval_sise' of toy on mvtec3d; did you mean 'eval_size'"),
        ({"categories": ["bolts"]}, "did you mean 'bolt'"),
        ({"rescore": True}, "expected kept predictions"),
    ],
)
def test_wrong_arguments_are_found_before_any_fit(tree, tmp_path, change, message):
    fits = toy.Toy.fits
    with pytest.raises(Mm3dadError, match=message):
        evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", **change)
    assert toy.Toy.fits == fits and not (tmp_path / "out").exists()


def test_a_json_that_is_a_folder_is_found_before_any_fit(tree, tmp_path):
    fits = toy.Toy.fits
    with pytest.raises(StorageError, match=r"expected a file to write at .* found a folder"):
        evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", json_path=tmp_path)
    assert toy.Toy.fits == fits


def test_state_lies_beside_the_json_by_default(tmp_path):
    assert default_out("toy", "mvtec3d", tmp_path / "a.json") == tmp_path / "a"
    assert default_out("toy", "mvtec3d", tmp_path / "a") == tmp_path / "a-runs"
    assert str(default_out("toy", "mvtec3d", None)) == os.path.join("out", "toy-mvtec3d")


def test_the_front_door_gives_the_same_numbers(finished, tree, tmp_path):
    fit_detector("toy", "mvtec3d", tree, tmp_path / "model", categories=["nut"])
    metrics = mm3dad.evaluate(mm3dad.load(tmp_path / "model"), mm3dad.open_dataset("mvtec3d", tree, "nut", "test"), eval_size=16)
    run = next(run for run in finished[0]["runs"] if (run["category"], run["seed"], run["shots"]) == ("nut", 0, None))
    names = [name for name in METRICS if "_ms_" not in name and name not in ("fit_seconds", "peak_rss_bytes")]
    assert {name: metrics[name] for name in names} == {name: run["metrics"][name] for name in names}
    assert metrics["notes"] == {}


def toy_samples():
    random = torch.Generator().manual_seed(0)
    make = lambda i, label, mask: Sample(  # noqa: E731
        rgb=torch.rand(3, toy.SIZE, toy.SIZE, generator=random), label=label, mask=mask, meta=Meta(id=f"{label}/{i}")
    )
    return [make(i, 0, None) for i in range(3)], [make(i, 1, None) for i in range(2)]


def test_what_the_data_cannot_define_is_none_with_the_reason(tmp_path):
    good, bad = toy_samples()
    with pytest.raises(ModelError, match="not fitted"):
        mm3dad.evaluate(mm3dad.create("toy"), good)
    detector = mm3dad.create("toy").fit(good)
    metrics = mm3dad.evaluate(detector, good + bad)
    assert (
        metrics["image_auroc"] is not None
        and metrics["aupro_30"] is None
        and "2 defective samples have no mask" in metrics["notes"]["aupro_30"]
    )
    metrics = mm3dad.evaluate(detector, good)
    assert (
        metrics["image_auroc"] is None
        and metrics["image_auroc_ci"] is None
        and metrics["pixel_auroc"] is None
        and metrics["notes"]["image_auroc"]
    )
    with pytest.raises(DataError, match="needs test samples, got none"):
        mm3dad.evaluate(detector, [])
    unknown = Sample(rgb=torch.rand(3, toy.SIZE, toy.SIZE), meta=Meta(id="x"))
    with pytest.raises(DataError, match="sample 'x' has no label"):
        mm3dad.evaluate(detector, [unknown])
    with pytest.raises(DataError, match="none of the model's modalities"):
        mm3dad.evaluate(detector, [Sample(xyz=torch.rand(3, toy.SIZE, toy.SIZE), label=0)])


def test_points_without_a_grid_are_compared_point_by_point(monkeypatch):
    def cloud(label, count):
        mask = torch.zeros(1, count, dtype=torch.bool)
        mask[0, : 5 * label] = True
        xyz = torch.rand(3, 1, count) + mask * 3.0
        return Sample(xyz=xyz, label=label, mask=mask, meta=Meta(id=f"{label}-{count}", organised=False))

    samples = [cloud(0, 40), cloud(1, 50)]
    detector = mm3dad.create("toy")
    detector.is_fitted, detector.threshold = True, 1.0
    monkeypatch.setattr(detector, "_state", lambda: ({}, {}))
    monkeypatch.setattr(detector, "_map", lambda sample: {"map": sample.xyz.sum(0)})
    metrics = mm3dad.evaluate(detector, samples)
    assert metrics["pixel_auroc"] == 1.0 and metrics["samples"] == 2
