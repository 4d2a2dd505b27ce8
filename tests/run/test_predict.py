from __future__ import annotations

import errno
import json
import threading
from functools import partial

import pytest
import torch

import mm3dad
from mm3dad import files
from mm3dad.errors import DataError, ModelError, ShapeError, StorageError
from mm3dad.run import outcomes
from mm3dad.run.fit import fit_detector
from mm3dad.run.maps import file_stem, resize_map, resize_mask
from mm3dad.run.outcomes import check_prediction, predict_each, read_ahead
from mm3dad.run.predict import predict_inputs
from mm3dad.types import Meta, Prediction, Sample
from tests.run import toy

toy.register()


def test_a_folder_is_scored_whole_and_kept(tree, model, tmp_path):
    seen = []
    result = predict_inputs(
        model, [tree / "nut/test"], tmp_path / "out", tmp_path / "p.json", lambda sample, prediction, row: seen.append(row["id"])
    )
    assert result.failures == [] and len(result.rows) == 6 and seen == [row["id"] for row in result.rows]
    assert json.loads((tmp_path / "p.json").read_text()) == json.loads((tmp_path / "out/predictions.json").read_text()) == result.rows
    about = json.loads((tmp_path / "out/predict.json").read_text())
    assert (
        about["method"] == "toy"
        and about["command"].startswith("mm3dad predict")
        and about["failures"] == {}
        and about["versions"]["torch"]
    )
    detector = mm3dad.load(model)
    dataset = {sample.meta.id: sample for sample in mm3dad.open_dataset("mvtec3d", tree, "nut", "test")}
    for row in result.rows:
        keys = {"id", "label", "defect", "score", "threshold", "is_anomaly", "calibrated", "p_value", "pixel_threshold", "predict_ms"}
        assert set(row) == keys | {"paths", "file", "is_outside", "outside_p_value", "parts"}
        expected = detector.predict(dataset[row["id"]])
        assert (row["score"], row["threshold"], row["is_anomaly"]) == (expected.score, expected.threshold, expected.is_anomaly)
        tensors = files.read_tensors(tmp_path / "out" / row["file"])
        assert torch.equal(tensors["map"], expected.map) and torch.equal(tensors["mask"], dataset[row["id"]].mask)
        assert {"rgb_map", "xyz_map"} <= tensors.keys()


def test_a_file_in_a_tree_names_the_whole_sample(tree, model):
    (row,) = predict_inputs(model, [tree / "nut/test/dent/rgb/001.png"]).rows
    assert row["is_anomaly"] and row["file"] is None and {"rgb", "xyz", "gt"} <= row["paths"].keys()


def test_a_bad_file_does_not_stop_the_others(tree, model, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    inputs = [tree / "nut/test/dent/rgb/000.png", tmp_path / "bad.png", tmp_path / "missing.png", tree / "nut/test/good/rgb/000.png"]
    result = predict_inputs(model, inputs, tmp_path / "out")
    assert [row["id"] for row in result.rows] == ["test/dent/000", "test/good/000"]
    assert {path for path, _ in result.failures} == {str(tmp_path / "bad.png"), str(tmp_path / "missing.png")}
    assert all(reason and "\n" not in reason for _, reason in result.failures)
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 2


def test_inputs_with_one_id_are_kept_apart(tree, model, tmp_path):
    path = tree / "nut/test/dent/rgb/000.png"
    rows = predict_inputs(model, [path, path], tmp_path / "out").rows
    assert [row["id"] for row in rows] == ["test/dent/000", "test/dent/000-2"]
    assert len({row["file"] for row in rows}) == 2


def test_what_was_scored_before_an_interruption_is_on_disk(tree, model, tmp_path):
    def stop(row):
        if row["id"].endswith("001"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_inputs(model, [tree / "nut/test/dent"], tmp_path / "out", on_row=stop)
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 2


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tree, model, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device; free some space") as caught:
        predict_inputs(model, [tree / "nut/test"], tmp_path / "out")
    assert caught.value.exit_status == 1
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_json_that_is_a_folder_is_found_first(tree, model, tmp_path):
    with pytest.raises(StorageError, match=r"expected a file to write at .* found a folder"):
        predict_inputs(model, [tree / "nut/test"], json=tmp_path)


def test_a_missing_or_damaged_model_is_said(tree, model, tmp_path):
    with pytest.raises(ModelError, match="make one with `mm3dad fit`"):
        predict_inputs(tmp_path, [tree / "nut/test"])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.json").write_text((model / "model.json").read_text()[:40])
    with pytest.raises(ModelError, match="damaged or foreign"):
        predict_inputs(broken, [tree / "nut/test"])


def test_reading_runs_ahead_by_one_and_keeps_the_order():
    started = [threading.Event() for _ in range(3)]

    def read(i):
        started[i].set()
        if i == 1:
            raise DataError("expected, got, cure")
        return Sample(rgb=torch.rand(3, 4, 4), meta=Meta(id=str(i)))

    items = read_ahead([partial(read, i) for i in range(3)])
    assert next(items).meta.id == "0"
    assert started[1].wait(5) and not started[2].is_set()
    assert isinstance(next(items), DataError)
    assert next(items).meta.id == "2"
    assert list(items) == [] == list(read_ahead([]))


def test_gpu_batches_give_what_single_samples_give(tree, model, monkeypatch):
    detector = mm3dad.load(model)
    dataset = mm3dad.open_dataset("mvtec3d", tree, "nut", "test")
    lonely = Sample(rgb=None, xyz=torch.rand(3, toy.SIZE, toy.SIZE), meta=Meta(id="lonely"))
    detector.state.pop("xyz")

    def fail():
        raise DataError("unreadable")

    readers = [partial(dataset.__getitem__, i) for i in range(3)] + [fail, lambda: lonely] + [partial(dataset.__getitem__, 3)]
    single = list(predict_each(detector, readers))
    sizes = []
    plain = detector.predict_batch
    monkeypatch.setattr(detector, "predict_batch", lambda samples: sizes.append(len(samples)) or plain(samples))
    monkeypatch.setattr(detector, "config", toy.ToyConfig(device="cuda"))
    monkeypatch.setattr(outcomes, "GPU_BATCH", 4)
    batched = list(predict_each(detector, readers))
    assert sizes == [3, 2, 1, 1]  # cut by the unreadable file, then the batch with the lonely sample is taken apart
    assert [one.prediction and one.prediction.score for one in batched] == [one.prediction and one.prediction.score for one in single]
    assert [str(one.error) for one in batched] == [str(one.error) for one in single]
    assert "lonely" in str(single[4].error) and all(one.milliseconds > 0 for one in single if one.prediction)


def test_a_method_that_breaks_the_contract_is_named(tree, model):
    detector = mm3dad.load(model)
    sample = mm3dad.open_dataset("mvtec3d", tree, "nut", "test")[0]
    with pytest.raises(ShapeError, match=r"toy must return a map \(32, 32\)"):
        check_prediction(detector, sample, Prediction(1.0, torch.zeros(8, 8)))
    for score, value in ((float("nan"), 0.0), (1.0, float("inf"))):
        with pytest.raises(DataError, match="no finite score"):
            check_prediction(detector, sample, Prediction(score, torch.full((32, 32), value)))


def test_maps_and_masks_are_resized_about_the_same_centres():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4, 4:6] = True
    assert resize_mask(mask, (4, 4)).nonzero().tolist() == [[1, 2]]
    assert torch.equal(resize_mask(resize_mask(mask, (16, 16)), (8, 8)), mask)
    ramp = torch.arange(8.0).expand(8, 8)
    assert torch.allclose(resize_map(ramp, (4, 4))[0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    assert resize_map(ramp.double(), (8, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "stem"),
    [("test/hole/003", "test__hole__003"), ("a b:c", "a_b_c"), ("../x", "__x"), ("..", "sample"), ("größe-1.a", "größe-1.a")],
)
def test_ids_become_safe_file_names(name, stem):
    assert file_stem(name) == stem


def test_a_transductive_model_scores_its_inputs_as_one_set(tree, tmp_path):
    fit_detector("toyset", "mvtec3d", tree, tmp_path / "model")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    result = predict_inputs(tmp_path / "model", [tree / "nut/test", tmp_path / "bad.png"])
    assert [path for path, _ in result.failures] == [str(tmp_path / "bad.png")] and len(result.rows) == 6
    assert min(row["score"] for row in result.rows) == 0  # the toy takes off the lowest score of the set
    dataset = mm3dad.open_dataset("mvtec3d", tree, "nut", "test")
    expected = {one.meta.id: one.score for one in mm3dad.load(tmp_path / "model").predict_all(list(dataset))}
    assert {row["id"]: row["score"] for row in result.rows} == expected


def test_an_error_of_the_set_is_told_for_each_input(tree, tmp_path):
    mm3dad.create("muscv2", centers=16, group_size=16, max_points=600, image_size=64).fit().save(tmp_path / "model")
    result = predict_inputs(tmp_path / "model", [tree / "nut/test/dent/rgb/000.png"])
    assert result.rows == [] and "call predict_all(samples) with 2 or more, got 1" in result.failures[0][1]
    result = predict_inputs(tmp_path / "model", [tree / "nut/test"])
    assert len(result.rows) == 6 and not result.failures


def test_samples_of_a_set_are_read_on_access():
    reads = []
    samples = outcomes._OnAccess([partial(lambda n: reads.append(n) or n, n) for n in range(4)])
    assert len(samples) == 4 and samples[2] == 2 and samples[1:3] == [1, 2] and reads == [2, 1, 2]
