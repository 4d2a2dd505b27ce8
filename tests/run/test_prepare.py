import json
import zipfile

import numpy as np
import pytest
import tifffile
import torch

import mm3dad
from mm3dad import files
from mm3dad.errors import ConfigError, DataError, Mm3dadError, StorageError
from mm3dad.run import prepare as module
from mm3dad.run.prepare import prepare
from tests.data.test_eyecandies import write_candies
from tests.data.test_folder import CAMERA, turn_into_depth
from tests.data.trees import write_tree

FAST = {"border": 4, "candidates": 50, "workers": 1}


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "in", ("a", "b"), 2, 1, 1, 1)


def snapshot(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_writes_a_clean_copy_and_a_manifest(tree, tmp_path):
    before = snapshot(tree)
    report = prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    assert snapshot(tree) == before
    assert (report["samples"], report["done"], report["resumed"]) == (10, 10, 0)
    sample = mm3dad.open_dataset("mvtec3d", tmp_path / "out", "a", "train")[0]
    assert sample.size == (100, 100)
    assert int(sample.valid.sum()) == 15 * 15
    bad = mm3dad.open_dataset("mvtec3d", tmp_path / "out", "b", "test")[0]
    raw = mm3dad.open_dataset("mvtec3d", tree, "b", "test")[0]
    assert torch.equal(bad.mask[34:66, 34:66], raw.mask)
    assert torch.equal(bad.rgb[:, 34:66, 34:66] * bad.valid[34:66, 34:66], raw.rgb * bad.valid[34:66, 34:66])
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["parameters"]["border"] == 4
    assert manifest["parameters"]["dataset"] == "mvtec3d"
    entry = manifest["samples"]["a/train/good/000"]
    assert entry["inputs"]["rgb"]["sha256"] == files.sha256_file(tree / "a/train/good/rgb/000.png")
    assert entry["outputs"]["a/train/good/xyz/000.tiff"] == files.sha256_file(tmp_path / "out/a/train/good/xyz/000.tiff")
    assert (entry["points"], entry["kept"]) == (1024, 225)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "manifest.json"]


def test_a_second_call_does_nothing_and_changed_inputs_are_done_again(tree, tmp_path):
    prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    first = snapshot(tmp_path / "out")
    assert prepare("mvtec3d", tree, tmp_path / "out", **FAST)["done"] == 0
    assert snapshot(tmp_path / "out") == first
    tifffile.imwrite(
        tree / "a/train/good/xyz/000.tiff", tifffile.imread(tree / "a/train/good/xyz/001.tiff"), photometric="rgb", software="x"
    )
    assert prepare("mvtec3d", tree, tmp_path / "out", **FAST)["done"] == 1
    (tmp_path / "out/b/test/dent/gt/000.png").unlink()
    assert prepare("mvtec3d", tree, tmp_path / "out", **FAST)["done"] == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_resumes_after_an_interruption(tree, tmp_path, monkeypatch, stop):
    whole = prepare("mvtec3d", tree, tmp_path / "whole", **FAST)
    real, calls = module.clean_sample, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise stop
        return real(*arguments)

    monkeypatch.setattr(module, "clean_sample", interrupted)
    with pytest.raises(stop):
        prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    assert not json.loads((tmp_path / "out/manifest.json").read_text())["complete"]
    report = prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    assert (report["done"], report["resumed"]) == (whole["samples"] - 4, 4)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_processes_give_the_same_files(tmp_path):
    write_candies(tmp_path / "in")  # 7 samples are more than the 4 that wait at a time
    prepare("eyecandies", tmp_path / "in", tmp_path / "one", workers=1)
    prepare("eyecandies", tmp_path / "in", tmp_path / "two", workers=2)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_other_parameters_need_another_folder(tree, tmp_path):
    prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    with pytest.raises(DataError, match="was prepared with border=4, not 5; choose a new folder"):
        prepare("mvtec3d", tree, tmp_path / "out", **{**FAST, "border": 5})


def test_categories_can_be_added_later(tree, tmp_path):
    assert prepare("mvtec3d", tree, tmp_path / "out", categories=["a"], **FAST)["samples"] == 5
    assert prepare("mvtec3d", tree, tmp_path / "out", categories=["b"], **FAST)["done"] == 5
    assert prepare("mvtec3d", tree, tmp_path / "out", **FAST)["done"] == 0


def test_refuses_its_input_foreign_folders_and_files(tree, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.txt").write_text("years of work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text('{"generator": "mm3dad.synthetic"}')
    (tmp_path / "file").write_text("x")
    cases = [
        (tree, "must be apart"),
        (tree / "new", "must be apart"),
        (tree.parent, "must be apart"),
        (tmp_path / "foreign", "is not empty"),
        (tmp_path / "other", "of something else"),
        (tmp_path / "file", "found a file"),
    ]
    for out, message in cases:
        with pytest.raises(Mm3dadError, match=message):
            prepare("mvtec3d", tree, out, **FAST)
    assert snapshot(tmp_path / "foreign") == {"thesis.txt": b"years of work"}


def test_unknown_names_and_options(tree, tmp_path):
    for message, name, options in [
        ("cannot be prepared", "mvtec", {}),
        ("did you mean 'border'", "mvtec3d", {"bordr": 3}),
        ("unknown option 'border' of prepare eyecandies", "eyecandies", {"border": 3}),
        ("border must be positive", "mvtec3d", {"border": 0}),
    ]:
        with pytest.raises(ConfigError, match=message):
            prepare(name, tree, tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="folder or an archive"):
        prepare("mvtec3d", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_flat_parts_are_refused_before_anything_is_written(tree, tmp_path):
    for path in tree.glob("b/train/good/xyz/*"):
        xyz = tifffile.imread(path)
        xyz[..., 2] = 0.5
        tifffile.imwrite(path, xyz, photometric="rgb")
    with pytest.raises(DataError, match="plane removal would take 100%"):
        prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()


def test_a_bad_file_stops_with_its_name_and_keeps_the_others(tree, tmp_path):
    bad = tree / "b/test/dent/xyz/000.tiff"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"b.test.dent.xyz.000\.tiff"):
        prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    bad.write_bytes(whole)
    assert 0 < prepare("mvtec3d", tree, tmp_path / "out", **FAST)["resumed"] < 10


def test_full_disk_is_a_storage_error_and_leaves_no_half_file(tree, tmp_path, monkeypatch):
    def full(path, *_, **__):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mm3dad.data.writing.tifffile.imwrite", full)
    with pytest.raises(StorageError, match=r"000\.tiff: No space left"):
        prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    assert not [path for path in (tmp_path / "out").rglob("*") if "tiff" in path.name]


def test_rgb_alone_cannot_be_prepared(tmp_path):
    write_tree(tmp_path / "in", modalities=("rgb",))
    with pytest.raises(DataError, match="has no organised cloud"):
        prepare("mvtec3d", tmp_path / "in", tmp_path / "out", **FAST)


def test_archive_is_unpacked_beside_and_prepared(tree, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as out:
        for path in tree.rglob("*.*"):
            out.write(path, "top/" + str(path.relative_to(tree)))
    report = prepare("mvtec3d", None, tmp_path / "out", archives=[tmp_path / "data.zip"], **FAST)
    assert report["archives"][0]["sha256"] == files.sha256_file(tmp_path / "data.zip")
    assert report["samples"] == 10
    prepare("mvtec3d", tree, tmp_path / "straight", **FAST)
    made, straight = snapshot(tmp_path / "out"), snapshot(tmp_path / "straight")
    made.pop("manifest.json")
    straight.pop("manifest.json")
    assert made == straight
    assert prepare("mvtec3d", None, tmp_path / "out", archives=[tmp_path / "data.zip"], **FAST)["done"] == 0


def test_camera_moves_with_the_padding(tree, tmp_path):
    (tree / "a/calibration").mkdir()
    (tree / "a/calibration/camera_parameters.json").write_text('{"focus": 0.01, "sx": 1e-4, "sy": 1e-4, "cx": 16, "cy": 15}')
    prepare("mvtec3d", tree, tmp_path / "out", categories=["a"], **FAST)
    assert mm3dad.open_dataset("mvtec3d", tmp_path / "out", "a", "train").intrinsics == pytest.approx((100, 100, 50, 49))


def test_own_depth_images_are_prepared_too(tree, tmp_path):
    turn_into_depth(tree)
    (tree / "intrinsics.json").write_text(json.dumps({**CAMERA, "fx": 500.0, "fy": 500.0}))
    prepare("folder", tree, tmp_path / "out", categories=["a"], **FAST)
    assert int(mm3dad.open_dataset("mvtec3d", tmp_path / "out", "a", "train")[0].valid.sum()) == 225


@pytest.mark.parametrize("variant", ["m3dm", "musc"])
def test_eyecandies_prepared_equals_read_raw(tmp_path, variant):
    write_candies(tmp_path / "in")
    prepare("eyecandies", tmp_path / "in", tmp_path / "out", workers=1, variant=variant)
    for split in ("train", "validation", "test"):
        raw = mm3dad.open_dataset("eyecandies", tmp_path / "in", "Confetto", split, variant=variant)
        made = mm3dad.open_dataset("eyecandies", tmp_path / "out", "Confetto", split, variant=variant)
        assert [record.id for record in raw.records] == [record.id for record in made.records]
        for one, other in zip(raw, made, strict=True):
            assert torch.equal(one.rgb, other.rgb)
            assert torch.equal(one.xyz, other.xyz)
            assert torch.equal(one.mask, other.mask)
            assert one.label == other.label
    assert np.array_equal(len(raw), 3)
    wrong = "musc" if variant == "m3dm" else "m3dm"
    with pytest.raises(DataError, match=f"was prepared as variant {variant}, not {wrong}"):
        mm3dad.open_dataset("eyecandies", tmp_path / "out", "Confetto", "train", variant=wrong)


def test_a_flat_part_is_found_in_any_of_several_samples(tree, tmp_path):
    path = tree / "a/train/good/xyz/001.tiff"
    xyz = tifffile.imread(path)
    xyz[..., 2] = 0.5
    tifffile.imwrite(path, xyz, photometric="rgb")
    with pytest.raises(DataError, match=r"points of .*a.train.good.xyz.001\.tiff, expected at most 80%"):
        prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()


def test_the_refusal_can_be_lifted_without_starting_again(tree, tmp_path):
    prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    assert prepare("mvtec3d", tree, tmp_path / "out", max_removed=0.99, **FAST)["resumed"] == 10


def test_a_sample_that_moved_in_the_input_needs_a_new_folder(tree, tmp_path):
    prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    for role in ("rgb", "xyz", "gt"):
        next((tree / "a/test/dent" / role).glob("000.*")).unlink()
    with pytest.raises(DataError, match=r"holds 1 samples that the input has no longer, e\.g\. a/test/dent/000; prepare into a new folder"):
        prepare("mvtec3d", tree, tmp_path / "out", **FAST)


@pytest.mark.parametrize("samples", [["a"], {"a/train/good/000": 3}, {"a/train/good/000": {"inputs": {}}}])
def test_a_damaged_manifest_is_one_line(tree, tmp_path, samples):
    prepare("mvtec3d", tree, tmp_path / "out", **FAST)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    (tmp_path / "out/manifest.json").write_text(json.dumps({**manifest, "samples": samples}))
    with pytest.raises(DataError, match="manifest.json"):
        prepare("mvtec3d", tree, tmp_path / "out", **FAST)


def test_options_of_the_wrong_kind_are_refused_before_anything_is_written(tree, tmp_path):
    with pytest.raises(ConfigError, match="drop_distance must be a number, got 'abc'"):
        prepare("mvtec3d", tree, tmp_path / "out", drop_distance="abc")
    assert not (tmp_path / "out").exists()
