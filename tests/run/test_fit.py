from __future__ import annotations

import json
from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mm3dad
from mm3dad.data import Record
from mm3dad.errors import ConfigError, DataError, Mm3dadError, StorageError
from mm3dad.run import _arguments
from mm3dad.run._splits import choose_categories
from mm3dad.run.fit import fit_detector
from mm3dad.run.selection import Selection, choose_shots, fingerprint
from tests.run import toy

toy.register()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return toy.write_tree(tmp_path_factory.mktemp("tree"))


def records(count):
    return [Record(f"train/good/{i:03d}", "nut", "good", 0) for i in range(count)]


def test_the_choice_of_shots_is_written_down():
    # these ids are the protocol: another choice would make published k-shot numbers incomparable
    assert [record.id for record in choose_shots(records(12), 3, 0)] == ["train/good/001", "train/good/009", "train/good/011"]
    assert choose_shots(records(4), None, 0) == records(4)


@given(count=st.integers(1, 30), seed=st.integers(0, 5), data=st.data())
def test_choosing_shots_nests_and_ignores_the_order_of_the_records(count, seed, data):
    shots = data.draw(st.integers(1, count))
    chosen = choose_shots(records(count), shots, seed)
    assert len(chosen) == shots == len({record.id for record in chosen})
    assert chosen == sorted(chosen, key=lambda record: record.id)
    assert chosen == choose_shots(records(count)[::-1], shots, seed)
    assert {r.id for r in chosen} <= {r.id for r in choose_shots(records(count), min(count, shots + 1), seed)}


def test_seeds_choose_differently():
    assert len({tuple(record.id for record in choose_shots(records(30), 4, seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("shots", [0, -1, 7])
def test_shots_out_of_range_name_both_sides(shots):
    with pytest.raises(ConfigError, match=rf"between 1 and the 6 training samples there are, got {shots}"):
        choose_shots(records(6), shots, 0)


def test_fit_writes_one_model_per_category_and_says_what_it_used(tree, tmp_path):
    rows = fit_detector("toy", "mvtec3d", tree, tmp_path / "models", shots=2, seed=1, options={"gain": "2"})
    assert [row["categories"] for row in rows] == [["bolt"], ["nut"]]
    sidecar = json.loads((tmp_path / "models" / "nut" / "fit.json").read_text())
    assert sidecar == json.loads(json.dumps(rows[1]))
    assert sidecar["samples"] == [record.id for record in choose_shots(records(6), 2, 1)]
    assert sidecar["config"]["gain"] == 2.0 and sidecar["config"]["seed"] == 1 and sidecar["shots"] == 2
    assert sidecar["fit_seconds"] >= 0 and sidecar["bank_bytes"] > 0 and sidecar["versions"]["torch"] == metadata.version("torch")
    detector = mm3dad.load(tmp_path / "models" / "nut")
    dataset = mm3dad.open_dataset("mvtec3d", tree, "nut", "test")
    assert detector.predict(dataset[0]).is_anomaly


def test_one_category_goes_to_the_folder_itself_and_uses_validation(tree, tmp_path):
    fit_detector("toy", "mvtec3d", tree, tmp_path / "model", categories=["nut"])
    detector = mm3dad.load(tmp_path / "model")
    validation = mm3dad.open_dataset("mvtec3d", tree, "nut", "validation")
    assert detector.predict(validation[0]).threshold == max(detector.predict(sample).score for sample in validation)


def test_one_model_for_all_categories_has_unique_ids(tree, tmp_path):
    (row,) = fit_detector("toy", "mvtec3d", tree, tmp_path / "model", multiclass=True, shots=2)
    assert row["categories"] == ["bolt", "nut"] and len(row["samples"]) == 4
    assert [name.split("/")[0] for name in row["samples"]] == ["bolt", "bolt", "nut", "nut"]
    parts = [(dataset := mm3dad.open_dataset("mvtec3d", tree, name, "train"), dataset.records[:1]) for name in ("bolt", "nut")]
    joined = Selection(parts)
    assert [sample.meta.id for sample in joined] == joined.ids == ["bolt/train/good/000", "nut/train/good/000"]
    assert [sample.meta.category for sample in joined[0:2]] == ["bolt", "nut"]


def test_fitting_without_validation_works(tree, tmp_path):
    root = toy.write_tree(tmp_path / "data", ["nut"])
    for path in sorted((root / "nut" / "validation").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    fit_detector("toy", "mvtec3d", root, tmp_path / "model")
    assert mm3dad.load(tmp_path / "model").threshold > 0


def test_rgb_only_data_fit_without_being_told(tmp_path):
    root = toy.write_tree(tmp_path / "data", ["nut"], roles=["rgb"])
    fit_detector("toy", "mvtec3d", root, tmp_path / "model")
    assert set(mm3dad.load(tmp_path / "model").state) == {"rgb", "noise"}


def test_modalities_choose_what_is_read(tree, tmp_path):
    fit_detector("toy", "mvtec3d", tree, tmp_path / "model", categories=["nut"], options={"modalities": "xyz"})
    assert set(mm3dad.load(tmp_path / "model").state) == {"xyz", "noise"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "toi"}, "unknown method 'toi'; did you mean 'toy'"),
        ({"dataset": "mvtec"}, "unknown dataset 'mvtec'; did you mean 'mvtec3d'"),
        ({"categories": ["nutt"]}, "no category 'nutt'; did you mean 'nut'"),
        ({"options": {"gian": "2"}}, "unknown option 'gian' of toy on mvtec3d; did you mean 'gain'"),
        ({"options": {"gain": "much"}}, "option gain must be a number, got 'much'"),
        ({"options": {"eval_size": "16"}}, "goes with `mm3dad evaluate`"),
        ({"options": {"seed": "1"}}, r"seed has its own flag; use --seed"),
        ({"options": {"modalities": "rbg"}}, "'rbg'"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": "cuda:99"}, "CUDA devices; use --device cpu or auto"),
        ({"shots": 7}, "between 1 and the 6 training samples"),
        ({"root": "missing"}, "expected a dataset folder at missing, found nothing"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(tree, tmp_path, change, message):
    arguments = {"method": "toy", "dataset": "mvtec3d", "root": tree, "out": tmp_path / "model", **change}
    with pytest.raises(Mm3dadError, match=message) as caught:
        fit_detector(**arguments)
    assert caught.value.exit_status == 2 and "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_category_without_training_images_is_refused(tree, tmp_path):
    root = toy.write_tree(tmp_path / "data", ["nut"])
    for path in (root / "nut" / "train").rglob("*.*"):
        path.unlink()
    with pytest.raises(DataError, match="without training images"):
        fit_detector("toy", "mvtec3d", root, tmp_path / "model")


def test_a_damaged_header_is_found_before_fitting(tmp_path):
    root = toy.write_tree(tmp_path / "data", ["nut"])
    (root / "nut/train/good/rgb/003.png").write_bytes(b"not a picture")
    fits = toy.Toy.fits
    with pytest.raises(DataError, match=r"003\.png"):
        fit_detector("toy", "mvtec3d", root, tmp_path / "model")
    assert toy.Toy.fits == fits


def test_out_that_is_a_file_or_locked_is_found_before_fitting(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    fits = toy.Toy.fits
    with pytest.raises(StorageError, match="found a file; choose another --out"):
        fit_detector("toy", "mvtec3d", tree, tmp_path / "file")
    with pytest.raises(StorageError, match="not a folder with write permission"):
        fit_detector("toy", "mvtec3d", tree, tmp_path / "file" / "below")
    monkeypatch.setattr(_arguments.os, "access", lambda path, mode: False)
    with pytest.raises(StorageError, match="not a folder with write permission") as caught:
        fit_detector("toy", "mvtec3d", tree, tmp_path / "new")
    assert caught.value.exit_status == 1 and toy.Toy.fits == fits


def test_the_fingerprint_changes_with_the_files(tmp_path):
    root = toy.write_tree(tmp_path / "data", ["nut"])
    before = fingerprint([mm3dad.open_dataset("mvtec3d", root, "nut", "test")])
    assert before == fingerprint([mm3dad.open_dataset("mvtec3d", root, "nut", "test")])
    path = root / "nut/test/good/rgb/000.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert before != fingerprint([mm3dad.open_dataset("mvtec3d", root, "nut", "test")])


def test_categories_are_taken_once(tree):
    assert choose_categories("mvtec3d", tree, ["nut", "nut"]) == ["nut"]
    assert choose_categories("mvtec3d", tree, None) == ["bolt", "nut"]
