import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import mm3dad
from mm3dad.data.folder import Folder, parse_unit
from mm3dad.errors import ConfigError, DataError
from tests.data.test_clouds import write_pcd, write_ply
from tests.data.trees import make_arrays, write_tree

CAMERA = {"fx": 50.0, "fy": 50.0, "cx": 16.0, "cy": 16.0, "unit": 0.001}


def turn_into_depth(root, suffix=".png"):
    """Replace xyz/ by depth/ in millimetres."""
    for folder in sorted(root.glob("**/xyz")):
        (folder.parent / "depth").mkdir()
        for path in folder.iterdir():
            millimetres = (tifffile.imread(path)[..., 2] * 1000).round().astype(np.uint16)
            out = folder.parent / "depth" / (path.stem + suffix)
            if suffix == ".npy":
                np.save(out, millimetres)
            elif suffix == ".tiff":
                tifffile.imwrite(out, millimetres)
            else:
                Image.fromarray(millimetres).save(out)
        shutil.rmtree(folder)


def test_without_a_category_level_the_root_names_it(tmp_path):
    root = write_tree(tmp_path / "store", ("screws",)) / "screws"
    assert Folder.categories(root) == ["screws"]
    for name in (".", "screws"):
        data = mm3dad.open_dataset("folder", root, name, "test")
        assert (data.category, len(data), data.modalities) == ("screws", 4, ("rgb", "xyz"))
    assert Folder.categories(root.parent) == ["screws"]
    assert torch.equal(mm3dad.open_dataset("folder", root.parent, "screws", "test")[0].xyz, data[0].xyz)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".npy"])
def test_depth_with_intrinsics(tmp_path, suffix):
    write_tree(tmp_path)
    turn_into_depth(tmp_path, suffix)
    (tmp_path / "intrinsics.json").write_text(json.dumps(CAMERA))
    sample = mm3dad.open_dataset("folder", tmp_path, "a", "train")[0]
    z = torch.from_numpy(make_arrays(32, seed=1)[1][..., 2])
    assert torch.allclose(sample.xyz[2], z, atol=6e-4)
    u = torch.arange(32.0)
    assert torch.allclose(sample.xyz[0], (u - 16) / 50 * sample.xyz[2], atol=1e-6)
    assert sample.meta.intrinsics == (50, 50, 16, 16)
    assert sample.modalities == ("rgb", "xyz")


def test_unit_of_depth_by_option_by_word_and_missing(tmp_path):
    write_tree(tmp_path)
    turn_into_depth(tmp_path)
    (tmp_path / "intrinsics.json").write_text(json.dumps({**CAMERA, "unit": "mm"}))
    expected = mm3dad.open_dataset("folder", tmp_path, "a", "train")[0].xyz
    (tmp_path / "intrinsics.json").write_text(json.dumps({key: value for key, value in CAMERA.items() if key != "unit"}))
    with pytest.raises(DataError, match=r"000\.png has no unit"):
        mm3dad.open_dataset("folder", tmp_path, "a", "train")[0]
    assert torch.equal(mm3dad.open_dataset("folder", tmp_path, "a", "train", unit="0.001")[0].xyz, expected)
    (tmp_path / "intrinsics.json").unlink()
    with pytest.raises(DataError, match=r"needs intrinsics; write intrinsics\.json"):
        mm3dad.open_dataset("folder", tmp_path, "a", "train")[0]
    for damaged in ('{"fx": 1', "[]", '{"fx": "wide"}', json.dumps({**CAMERA, "unit": -1})):
        (tmp_path / "intrinsics.json").write_text(damaged)
        with pytest.raises(DataError, match=r"intrinsics\.json"):
            mm3dad.open_dataset("folder", tmp_path, "a", "train")


def test_unit_turns_millimetres_into_metres(tmp_path):
    write_tree(tmp_path)
    expected = mm3dad.open_dataset("folder", tmp_path, "a", "train")[0].xyz
    for path in tmp_path.glob("a/train/good/xyz/*"):
        tifffile.imwrite(path, tifffile.imread(path) * 1000, photometric="rgb")
    assert torch.allclose(mm3dad.open_dataset("folder", tmp_path, "a", "train", unit="mm")[0].xyz, expected)


@pytest.mark.parametrize("value", ["inch", 0, -1, float("nan"), "", [1]])
def test_units_that_make_no_sense(value):
    with pytest.raises(ConfigError, match="unit must be"):
        parse_unit(value)


def make_clouds(root, write, name):
    folder = root / "a/train/good/cloud"
    folder.mkdir(parents=True)
    write(folder / name)
    return mm3dad.open_dataset("folder", root, "a", "train")


def test_clouds_without_a_grid(tmp_path):
    data = make_clouds(tmp_path, lambda path: write_ply(path, "ascii"), "000.ply")
    sample = data[0]
    assert data.modalities == ("xyz",)
    assert sample.size == (1, 6)
    assert sample.rgb is not None
    assert not sample.meta.organised
    assert make_only_points(tmp_path).rgb is None


def make_only_points(root):
    return mm3dad.open_dataset("folder", root, "a", "train", modalities="xyz")[0]


def test_clouds_with_a_grid_and_an_image(tmp_path):
    data = make_clouds(tmp_path, lambda path: write_pcd(path, "binary", size=(2, 3)), "000.pcd")
    assert data[0].size == (2, 3)
    (tmp_path / "a/train/good/rgb").mkdir()
    image = np.full((2, 3, 3), 255, np.uint8)
    Image.fromarray(image).save(tmp_path / "a/train/good/rgb/000.png")
    data = mm3dad.open_dataset("folder", tmp_path, "a", "train")
    assert data.modalities == ("rgb", "xyz")
    assert bool((data[0].rgb == 1).all())
    (tmp_path / "a/train/good/cloud/000.pcd").unlink()
    write_ply(tmp_path / "a/train/good/cloud/000.ply", "ascii")
    assert mm3dad.open_dataset("folder", tmp_path, "a", "train")[0].size == (2, 3)
    Image.fromarray(image[:, :2]).save(tmp_path / "a/train/good/rgb/000.png")
    with pytest.raises(DataError, match=r"000\.ply has 6 points without a grid.*000\.png"):
        mm3dad.open_dataset("folder", tmp_path, "a", "train")[0]


def test_a_folder_without_data_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"expected categories or train/ and test/.*depth"):
        mm3dad.open_dataset("folder", tmp_path, ".", "train")
