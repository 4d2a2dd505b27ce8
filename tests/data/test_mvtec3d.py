import json
import os
import shutil

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import mm3dad
from mm3dad.data.checks import check_dataset
from mm3dad.data.mvtec3d import MVTec3D
from mm3dad.errors import ConfigError, DataError
from tests.data.trees import make_arrays, write_tree


def test_samples_are_sorted_and_hold_what_was_written(tmp_path):
    data = mm3dad.open_dataset("mvtec3d", write_tree(tmp_path), "a", "test")
    assert [record.id for record in data.records] == ["test/dent/000", "test/dent/001", "test/good/000", "test/good/001"]
    assert data.modalities == ("rgb", "xyz")
    assert [sample.label for sample in data] == [1, 1, 0, 0]
    rgb, xyz, mask = make_arrays(32, seed=8, defective=True)
    sample = data[0]
    assert torch.equal(sample.rgb, torch.from_numpy(rgb).permute(2, 0, 1) / 255)
    assert torch.equal(sample.xyz, torch.from_numpy(xyz).permute(2, 0, 1))
    assert torch.equal(sample.mask, torch.from_numpy(mask) > 0)
    assert sample.meta.defect == "dent"
    assert sorted(sample.meta.paths) == ["gt", "rgb", "xyz"]
    assert [sample.meta.id for sample in data[1:3]] == ["test/dent/001", "test/good/000"]


def test_categories_in_published_order_then_sorted(tmp_path):
    write_tree(tmp_path, ("tire", "zebra", "bagel", "apple"), 1, 0, 0, 0)
    (tmp_path / ".hidden" / "train").mkdir(parents=True)
    (tmp_path / "papers").mkdir()
    assert MVTec3D.categories(tmp_path) == ["bagel", "tire", "apple", "zebra"]


def test_missing_gt_on_good_is_zero_and_on_a_defect_unknown(tmp_path):
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / "a/test/good/gt")
    shutil.rmtree(tmp_path / "a/test/dent/gt")
    data = mm3dad.open_dataset("mvtec3d", tmp_path, "a", "test")
    assert data[0].mask is None
    assert not bool(data[2].mask.any())


@pytest.mark.parametrize("kept", ["rgb", "xyz"])
def test_trees_of_one_modality(tmp_path, kept):
    data = mm3dad.open_dataset("mvtec3d", write_tree(tmp_path, modalities=(kept,)), "a", "train")
    assert data.modalities == (kept,)
    assert data[0].modalities == (kept,)
    lacking = "xyz" if kept == "rgb" else "rgb"
    with pytest.raises(DataError, match=f"has no {lacking}, only {kept}"):
        mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train", modalities=lacking)


def test_modalities_option_reads_a_subset(tmp_path):
    write_tree(tmp_path)
    for value in ("rgb", ["rgb"]):
        data = mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train", modalities=value)
        assert data.modalities == ("rgb",)
        assert data[0].xyz is None
    for value in ("xyz,rgb", "", (), None):
        assert mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train", modalities=value).modalities == ("rgb", "xyz")
    for wrong in ("depth", "rgb,"):
        with pytest.raises(ConfigError, match="modalit"):
            mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train", modalities=wrong)


def test_partly_missing_modality_in_training_names_the_files(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "a/train/good/xyz/002.tiff").unlink()
    with pytest.raises(DataError, match=r"xyz for 3 of 4 samples, missing for train/good/002"):
        mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train")
    assert len(mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train", modalities="rgb")) == 4


def test_partly_missing_modality_in_test_is_a_sample_without_it(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "a/test/good/xyz/000.tiff").unlink()
    data = mm3dad.open_dataset("mvtec3d", tmp_path, "a", "test")
    assert data.modalities == ("rgb",)
    assert data[0].modalities == ("rgb", "xyz")
    assert data[2].modalities == ("rgb",)
    with pytest.raises(DataError, match="test/good/000"):
        mm3dad.open_dataset("mvtec3d", tmp_path, "a", "test", modalities="xyz")[2]


def test_splits_that_are_empty(tmp_path):
    write_tree(tmp_path, train=0, validation=0, test_good=1)
    with pytest.raises(DataError, match="a category without training images: 'a'"):
        mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train")
    assert len(mm3dad.open_dataset("mvtec3d", tmp_path, "a", "validation")) == 0
    shutil.rmtree(tmp_path / "a/test")
    (tmp_path / "a/test").mkdir()
    with pytest.raises(DataError, match="no test samples"):
        mm3dad.open_dataset("mvtec3d", tmp_path, "a", "test")


def test_names_that_do_not_exist(tmp_path):
    write_tree(tmp_path, ("bagel",))
    cases = [
        (DataError, "did you mean 'bagel'", (tmp_path, "bagle", "train"), {}),
        (DataError, "no category", (tmp_path, "../bagel", "train"), {}),
        (ConfigError, "did you mean 'train'", (tmp_path, "bagel", "trian"), {}),
        (ConfigError, "unknown option 'modalitys'.*did you mean 'modalities'", (tmp_path, "bagel", "train"), {"modalitys": "rgb"}),
        (DataError, "found nothing", (tmp_path / "no", "bagel", "train"), {}),
        (DataError, "is a category itself, give its parent", (tmp_path / "bagel", "bagel", "train"), {}),
        (DataError, "expected categories", (tmp_path / "bagel" / "train", "bagel", "train"), {}),
    ]
    for error, message, arguments, options in cases:
        with pytest.raises(error, match=message):
            mm3dad.open_dataset("mvtec3d", *arguments, **options)


def test_sizes_that_differ_name_both_files(tmp_path):
    write_tree(tmp_path)
    tifffile.imwrite(tmp_path / "a/train/good/xyz/001.tiff", make_arrays(16)[1], photometric="rgb")
    data = mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train")
    for call in (lambda: data[1], lambda: check_dataset(data)):
        with pytest.raises(DataError, match=r"(?s)001\.(png|tiff).*001\.(tiff|png)") as caught:
            call()
        assert "(32, 32)" in str(caught.value)
        assert "(16, 16)" in str(caught.value)


def test_mask_on_a_good_part_is_refused(tmp_path):
    write_tree(tmp_path)
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(tmp_path / "a/test/good/gt/001.png")
    with pytest.raises(DataError, match=r"gt.001\.png marks 1024 defect pixels on a good part"):
        mm3dad.open_dataset("mvtec3d", tmp_path, "a", "test")[3]


def test_millimetres_are_refused_on_reading_and_before_fitting(tmp_path):
    write_tree(tmp_path)
    for path in (tmp_path / "a/train/good/xyz").iterdir():
        tifffile.imwrite(path, tifffile.imread(path) * 1000, photometric="rgb")
    data = mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train")
    for call in (lambda: data[0], lambda: check_dataset(data)):
        with pytest.raises(DataError, match="spans .* m, expected at most 10 m; if it is in millimetres"):
            call()


def test_two_files_for_one_sample(tmp_path):
    write_tree(tmp_path)
    shutil.copy(tmp_path / "a/train/good/rgb/000.png", tmp_path / "a/train/good/rgb/000.jpg")
    with pytest.raises(DataError, match="two files for one sample"):
        mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train")


def test_links_out_of_the_tree_are_refused(tmp_path):
    write_tree(tmp_path / "in")
    outside = tmp_path / "secret.png"
    Image.fromarray(make_arrays(32)[0]).save(outside)
    (tmp_path / "in/a/train/good/rgb/000.png").unlink()
    os.symlink(outside, tmp_path / "in/a/train/good/rgb/000.png")
    with pytest.raises(DataError, match=r"000\.png leads outside the dataset"):
        mm3dad.open_dataset("mvtec3d", tmp_path / "in", "a", "train")
    shutil.rmtree(tmp_path / "in/a/test/good/rgb")
    os.symlink(tmp_path, tmp_path / "in/a/test/good/rgb")
    with pytest.raises(DataError, match="leads outside the dataset"):
        mm3dad.open_dataset("mvtec3d", tmp_path / "in", "a", "test")


def test_links_inside_the_tree_are_followed(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "a/train/good/rgb/000.png").unlink()
    os.symlink("001.png", tmp_path / "a/train/good/rgb/000.png")
    data = mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train")
    assert torch.equal(data[0].rgb, data[1].rgb)


@pytest.mark.parametrize(
    ("camera", "expected"),
    [
        ({"focus": 0.01, "sx": 4e-6, "sy": 5e-6, "cx": 16, "cy": 15}, (2500, 2000, 16, 15)),
        ({"fx": 50, "fy": 60, "cx": 16, "cy": 15}, (50, 60, 16, 15)),
    ],
)
def test_camera(tmp_path, camera, expected):
    write_tree(tmp_path)
    (tmp_path / "a/calibration").mkdir()
    path = tmp_path / "a/calibration/camera_parameters.json"
    path.write_text(json.dumps(camera))
    assert mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train")[0].meta.intrinsics == pytest.approx(expected)
    for damaged in (json.dumps(camera)[:-5], "{}", "[]", '{"focus": "x", "sx": 1, "sy": 1}', ""):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"camera_parameters\.json"):
            mm3dad.open_dataset("mvtec3d", tmp_path, "a", "train")


def test_synthetic_is_the_same_layout(tmp_path):
    data = mm3dad.open_dataset("synthetic", write_tree(tmp_path), "a", "train")
    assert data.name == "synthetic"
    assert len(data) == 4


def test_real_tire_and_road(real_data):
    tire = mm3dad.open_dataset("mvtec3d", real_data / "mvtec3d_rgb", "tire", "train")
    assert (len(tire), tire.modalities, tire[0].size) == (60, ("rgb",), (800, 600))
    road = mm3dad.open_dataset("mvtec3d", real_data / "road_stereo", "road", "test")
    assert (len(road), road.modalities) == (60, ("rgb", "xyz"))
    check_dataset(road)
    assert sum(sample.label for sample in road[::12]) == sum(bool(sample.mask.any()) for sample in road[::12])
