import numpy as np
import pytest
import tifffile
from PIL import Image

import mm3dad
from mm3dad.data import checks
from mm3dad.errors import DataError
from tests.data.trees import make_arrays, write_tree


def problems(root, split="test"):
    data = mm3dad.open_dataset("mvtec3d", root, "a", split, strict=False)
    return {finding.path.split("/a/")[1]: finding for record in data.records for finding in checks.check_record(data, record)}


def test_a_healthy_tree_has_no_findings(tmp_path):
    write_tree(tmp_path)
    assert problems(tmp_path) == {}
    for split in ("train", "validation", "test"):
        checks.check_dataset(mm3dad.open_dataset("mvtec3d", tmp_path, "a", split))


def damage(root, case):
    good, dent = root / "a/test/good", root / "a/test/dent"
    if case == "zeros":
        tifffile.imwrite(good / "xyz/000.tiff", np.zeros((32, 32, 3), np.float32), photometric="rgb")
    elif case == "sparse":
        xyz = make_arrays()[1]
        xyz[1:] = np.nan
        tifffile.imwrite(good / "xyz/000.tiff", xyz, photometric="rgb")
    elif case == "integers":
        tifffile.imwrite(good / "xyz/000.tiff", np.ones((32, 32, 3), np.uint16), photometric="rgb")
    elif case == "depth":
        tifffile.imwrite(good / "xyz/000.tiff", np.ones((32, 32), np.float32))
    elif case == "millimetres":
        tifffile.imwrite(good / "xyz/000.tiff", make_arrays()[1] * 1000, photometric="rgb")
    elif case == "large":
        tifffile.imwrite(good / "xyz/000.tiff", make_arrays()[1] * 200, photometric="rgb")
    elif case == "tiny":
        tifffile.imwrite(good / "xyz/000.tiff", make_arrays()[1] * 1e-4, photometric="rgb")
    elif case == "cut tiff":
        path = good / "xyz/000.tiff"
        path.write_bytes(path.read_bytes()[:5000])
    elif case == "cut png":
        path = good / "rgb/000.png"
        path.write_bytes(path.read_bytes()[:400])
    elif case == "black":
        Image.new("RGB", (32, 32)).save(good / "rgb/000.png")
    elif case == "alpha":
        Image.fromarray(make_arrays()[0]).convert("RGBA").save(good / "rgb/000.png")
    elif case == "deep":
        Image.fromarray(make_arrays()[0][..., 0].astype(np.uint16) * 256).save(good / "rgb/000.png")
    elif case == "marked":
        Image.new("L", (32, 32), 255).save(good / "gt/000.png")
    elif case == "unmarked":
        Image.new("L", (32, 32)).save(dent / "gt/000.png")
    elif case == "ones":
        Image.new("L", (32, 32), 1).save(dent / "gt/000.png")
    elif case == "no mask":
        (dent / "gt/000.png").unlink()
    elif case == "size":
        Image.new("L", (16, 32)).save(dent / "gt/000.png")


@pytest.mark.parametrize(
    ("case", "path", "problem", "severity"),
    [
        ("zeros", "test/good/xyz/000.tiff", "no measured point", "error"),
        ("sparse", "test/good/xyz/000.tiff", "measured points at 3.1% of the pixels", "warning"),
        ("integers", "test/good/xyz/000.tiff", "holds uint16, expected float32 metres", "error"),
        ("depth", "test/good/xyz/000.tiff", "expected xyz", "error"),
        ("millimetres", "test/good/xyz/000.tiff", "expected at most 10 m", "error"),
        ("large", "test/good/xyz/000.tiff", "large for a part", "warning"),
        ("tiny", "test/good/xyz/000.tiff", "less than 0.1 mm", "warning"),
        ("cut tiff", "test/good/xyz/000.tiff", "cut short", "error"),
        ("cut png", "test/good/rgb/000.png", "not a readable image", "error"),
        ("black", "test/good/rgb/000.png", "black all over", "warning"),
        ("alpha", "test/good/rgb/000.png", "alpha channel", "warning"),
        ("deep", "test/good/rgb/000.png", "holds uint16", "warning"),
        ("marked", "test/good/gt/000.png", "on a good part", "error"),
        ("unmarked", "test/dent/gt/000.png", "empty on a defective part", "warning"),
        ("ones", "test/dent/gt/000.png", "no value above 1", "error"),
        ("no mask", "test/dent/rgb/000.png", "no mask in gt/", "warning"),
        ("size", "test/dent/gt/000.png", "has size (32, 16)", "error"),
    ],
)
def test_each_problem_is_found_at_its_file_with_a_cure(tmp_path, case, path, problem, severity):
    damage(write_tree(tmp_path), case)
    found = problems(tmp_path)
    assert list(found) == [path]
    assert problem in found[path].problem
    assert found[path].severity == severity
    assert found[path].cure
    assert path not in found[path].problem
    data = mm3dad.open_dataset("mvtec3d", tmp_path, "a", "test")
    if severity == "error":
        with pytest.raises(DataError, match="; ") as caught:
            checks.check_dataset(data, clouds=len(data))
        assert path in str(caught.value)
    else:
        checks.check_dataset(data, clouds=len(data))


def test_two_damaged_files_of_one_sample_are_both_found(tmp_path):
    write_tree(tmp_path)
    for path in (tmp_path / "a/test/good/rgb/000.png", tmp_path / "a/test/good/gt/000.png"):
        path.write_bytes(path.read_bytes()[:45])
    assert set(problems(tmp_path)) == {"test/good/rgb/000.png", "test/good/gt/000.png"}


def test_check_dataset_counts_the_others(tmp_path):
    write_tree(tmp_path)
    for index in range(3):
        (tmp_path / f"a/train/good/xyz/{index:03d}.tiff").write_bytes(b"II*\0")
    with pytest.raises(DataError, match=r"000\.tiff.*\(2 more; `mm3dad doctor .*` lists them\)"):
        checks.check_dataset(mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train"))


def test_orphans_and_missing_pairs(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "a/test/dent/xyz/001.tiff").unlink()
    (tmp_path / "a/test/dent/gt/000.png").rename(tmp_path / "a/test/dent/gt/009.png")
    data = mm3dad.open_dataset("mvtec3d", tmp_path, "a", "test")
    (pair,) = checks.check_pairs(data)
    assert pair.path.endswith("test/dent/rgb/001.png")
    assert pair.severity == "warning"
    (orphan,) = checks.check_orphans(data)
    assert orphan.path.endswith("test/dent/gt/009.png")


def test_a_cleaned_cloud_is_not_called_sparse(tmp_path):
    write_tree(tmp_path)
    rgb, xyz, _ = make_arrays()
    xyz[1:], rgb[1:] = 0, 0
    tifffile.imwrite(tmp_path / "a/test/good/xyz/000.tiff", xyz, photometric="rgb")
    Image.fromarray(rgb).save(tmp_path / "a/test/good/rgb/000.png")
    assert problems(tmp_path) == {}
