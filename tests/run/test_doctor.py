import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from mm3dad.data.eyecandies import Eyecandies
from mm3dad.data.folder import Folder
from mm3dad.data.mvtec3d import MVTec3D
from mm3dad.errors import DataError
from mm3dad.run.doctor import detect_layout, doctor, doctor_self
from tests.data.test_clouds import write_ply
from tests.data.test_eyecandies import write_candies
from tests.data.test_folder import turn_into_depth
from tests.data.trees import make_arrays, write_tree


def test_layouts_are_recognised(tmp_path):
    assert detect_layout(write_tree(tmp_path / "m")) is MVTec3D
    assert detect_layout(tmp_path / "m/a") is Folder
    assert detect_layout(tmp_path / "m/a/test/good") is None
    turn_into_depth(write_tree(tmp_path / "f"))
    assert detect_layout(tmp_path / "f") is Folder
    assert detect_layout(write_candies(tmp_path / "e")) is Eyecandies


def test_healthy_data_have_no_findings(tmp_path):
    for root in (
        write_tree(tmp_path / "m", ("a", "b")),
        write_candies(tmp_path / "e"),
        tmp_path / "m/a",
        tmp_path / "m/a/test/dent/rgb/000.png",
    ):
        assert doctor(root) == []


def test_every_damage_is_found_at_its_file(tmp_path):
    root = write_tree(tmp_path, ("a", "b", "c"))
    (root / "a/train/good/xyz/001.tiff").unlink()
    (root / "a/train/good/rgb/002.png").write_bytes(b"\x89PNG\r\n")
    tifffile.imwrite(root / "b/test/good/xyz/000.tiff", make_arrays()[1] * 1000, photometric="rgb")
    tifffile.imwrite(root / "b/test/good/xyz/001.tiff", np.zeros((32, 32, 3), np.float32), photometric="rgb")
    Image.new("L", (32, 32), 255).save(root / "a/test/good/gt/000.png")
    Image.new("L", (30, 32), 255).save(root / "a/test/dent/gt/000.png")
    shutil.rmtree(root / "c/train")
    (root / "manifest.json").write_text('{"complete": false}')
    found = {(str(finding.path).removeprefix(str(root) + "/"), finding.severity): finding for finding in doctor(root)}
    assert list(found) == [
        ("a/test/dent/gt/000.png", "error"),
        ("a/test/good/gt/000.png", "error"),
        ("a/train/good/rgb/001.png", "error"),
        ("a/train/good/rgb/002.png", "error"),
        ("b/test/good/xyz/000.tiff", "error"),
        ("b/test/good/xyz/001.tiff", "error"),
        ("c", "error"),
        ("manifest.json", "error"),
    ]
    assert "has no xyz, which 3 of 4 train samples have" in found["a/train/good/rgb/001.png", "error"].problem
    assert "without training images" in found["c", "error"].problem
    assert "millimetres" in found["b/test/good/xyz/000.tiff", "error"].cure
    assert all(finding.cure and "\n" not in finding.problem for finding in found.values())


def test_warnings_about_the_test_set(tmp_path):
    (finding,) = doctor(write_tree(tmp_path, test_bad=0))
    assert (finding.severity, finding.problem) == ("warning", "has no defective test samples")


def test_damaged_json_names_the_category(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "a/calibration").mkdir()
    (tmp_path / "a/calibration/camera_parameters.json").write_text('{"fx": 1')
    (finding,) = doctor(tmp_path)
    assert "camera_parameters.json is not readable JSON" in finding.problem
    (tmp_path / "manifest.json").write_text("{")
    assert len(doctor(tmp_path)) == 2


def test_loose_files(tmp_path):
    write_ply(tmp_path / "a.ply", "ascii")
    whole = write_ply(tmp_path / "b.ply", "binary_little_endian").read_bytes()
    (tmp_path / "b.ply").write_bytes(whole[:-9])
    Image.fromarray(make_arrays()[0]).save(tmp_path / "c.png")
    (finding,) = [finding for finding in doctor(tmp_path) if finding.severity == "error"]
    assert finding.path == str(tmp_path / "b.ply")
    assert "cut short" in finding.problem


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises(DataError, match="expected"):
            doctor(path)


def test_installation_report():
    report = doctor_self()
    assert {"mm3dad", "python", "torch", "numpy", "tifffile"} <= set(report["versions"])
    assert report["devices"][0].startswith("cpu (")
    assert set(report["caches"]) == {"torch", "huggingface"}
    assert report["ops"]
    assert isinstance(report["problems"], list)


def test_missing_system_library_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr("mm3dad.run.doctor.OPEN3D_LIBRARIES", {"libnothing.so.9": "libnothing9"})
    assert "open3d lacks system libraries; apt-get install -y libnothing9" in doctor_self()["problems"]


def test_real_recordings_are_healthy(real_data):
    assert doctor(real_data / "mvtec3d_rgb" / "tire" / "test" / "combined") == []
    assert [finding for finding in doctor(real_data / "road_stereo") if finding.severity == "error"] == []


def test_files_of_a_kind_that_is_not_read_are_named(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "a/test/good/xyz/000.tiff").rename(tmp_path / "a/test/good/xyz/000.exr")
    found = {finding.path.removeprefix(str(tmp_path)): finding for finding in doctor(tmp_path)}
    assert list(found) == ["/a/test/good/rgb/000.png", "/a/test/good/xyz/000.exr"]
    assert "save it as .tiff or .tif or .npy" in found["/a/test/good/xyz/000.exr"].cure


@pytest.mark.parametrize("shape", [(), (5,), (2, 32, 32, 3)])
def test_arrays_that_are_no_image(tmp_path, shape):
    write_tree(tmp_path)
    (tmp_path / "a/test/good/xyz/000.tiff").unlink()
    np.save(tmp_path / "a/test/good/xyz/000.npy", np.zeros(shape, np.float32))
    for path in (tmp_path, tmp_path / "a/test/good/xyz/000.npy"):
        (finding,) = doctor(path)
        assert finding.path.endswith("000.npy")
        assert f"has shape {shape}, expected (H, W)" in finding.problem
