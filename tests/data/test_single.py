import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import mm3dad
from mm3dad.data.single import find_record, list_inputs, read_sample
from mm3dad.errors import ConfigError, DataError
from tests.data.test_clouds import write_ply
from tests.data.trees import make_arrays, write_sample, write_tree


def test_a_file_of_a_tree_names_the_whole_sample(tmp_path):
    write_tree(tmp_path)
    expected = mm3dad.open_dataset("mvtec3d", tmp_path, "a", "test")[0]
    for file in ("rgb/000.png", "xyz/000.tiff"):
        sample = read_sample(tmp_path / "a/test/dent" / file)
        assert torch.equal(sample.rgb, expected.rgb)
        assert torch.equal(sample.xyz, expected.xyz)
        assert torch.equal(sample.mask, expected.mask)
        assert (sample.label, sample.meta.id, sample.meta.category, sample.meta.defect) == (1, "test/dent/000", "a", "dent")
    assert read_sample(tmp_path / "a/test/dent/rgb/000.png", modalities=()).modalities == ("rgb", "xyz")
    only = read_sample(tmp_path / "a/test/good/rgb/001.png", modalities="rgb")
    assert (only.modalities, only.label) == (("rgb",), 0)


def test_role_folders_outside_a_split_have_no_label(tmp_path):
    write_sample(tmp_path / "monday", "7")
    sample = read_sample(tmp_path / "monday/rgb/7.png")
    assert (sample.meta.id, sample.label, sample.mask, sample.modalities) == ("monday/7", None, None, ("rgb", "xyz"))


def test_lone_files(tmp_path):
    rgb, xyz, _ = make_arrays()
    Image.fromarray(rgb).save(tmp_path / "image.jpg")
    tifffile.imwrite(tmp_path / "points.tiff", xyz, photometric="rgb")
    np.save(tmp_path / "array.npy", xyz)
    write_ply(tmp_path / "cloud.ply", "ascii", colour=False)
    kinds = {path.stem: read_sample(path).modalities for path in tmp_path.iterdir()}
    assert kinds == {"image": ("rgb",), "points": ("xyz",), "array": ("xyz",), "cloud": ("xyz",)}
    assert not read_sample(tmp_path / "cloud.ply").meta.organised
    assert read_sample(tmp_path / "image.jpg").label is None


def test_files_side_by_side_with_one_stem_belong_together(tmp_path):
    rgb, xyz, _ = make_arrays()
    Image.fromarray(rgb).save(tmp_path / "part.png")
    tifffile.imwrite(tmp_path / "part.tiff", xyz, photometric="rgb")
    assert read_sample(tmp_path / "part.png").modalities == ("rgb", "xyz")
    assert list_inputs(tmp_path) == [tmp_path / "part.png"]
    np.save(tmp_path / "part.npy", xyz)
    with pytest.raises(DataError, match="share a stem"):
        read_sample(tmp_path / "part.png")


def test_lone_depth_needs_a_camera(tmp_path):
    np.save(tmp_path / "depth.npy", np.full((4, 4), 500, np.uint16))
    with pytest.raises(DataError, match="needs intrinsics"):
        read_sample(tmp_path / "depth.npy")
    given = read_sample(tmp_path / "depth.npy", intrinsics=(50, 50, 2, 2), unit="mm")
    assert float(given.xyz[2, 0, 0]) == pytest.approx(0.5)
    (tmp_path / "intrinsics.json").write_text(json.dumps({"fx": 50, "fy": 50, "cx": 2, "cy": 2, "unit": 0.001}))
    assert torch.equal(read_sample(tmp_path / "depth.npy").xyz, given.xyz)


def test_errors_name_the_file(tmp_path):
    write_tree(tmp_path, modalities=("rgb",))
    (tmp_path / "a.txt").write_text("no image")
    cases = [
        (tmp_path / "a.txt", {}, DataError, r"a\.txt has the unknown kind \.txt"),
        (tmp_path / "none.png", {}, DataError, r"none\.png, found nothing"),
        (tmp_path, {}, DataError, "found a folder"),
        (tmp_path / "a/test/good/rgb/000.png", {"modalities": "xyz"}, DataError, "with rgb, not xyz"),
        (tmp_path / "a/test/good/rgb/000.png", {"modalities": "depth"}, ConfigError, "unknown modality"),
    ]
    for path, options, error, message in cases:
        with pytest.raises(error, match=message):
            read_sample(path, **options)


def test_sizes_that_differ_name_both_files(tmp_path):
    write_sample(tmp_path / "day", "7")
    tifffile.imwrite(tmp_path / "day/xyz/7.tiff", make_arrays(16)[1], photometric="rgb")
    with pytest.raises(DataError, match=r"7\.png has size \(32, 32\), but .*7\.tiff has \(16, 16\)"):
        read_sample(tmp_path / "day/rgb/7.png")


def test_a_link_beside_a_file_does_not_lead_out(tmp_path):
    rgb, xyz, _ = make_arrays()
    (tmp_path / "in").mkdir()
    Image.fromarray(rgb).save(tmp_path / "in/part.png")
    tifffile.imwrite(tmp_path / "secret.tiff", xyz, photometric="rgb")
    os.symlink(tmp_path / "secret.tiff", tmp_path / "in/part.tiff")
    with pytest.raises(DataError, match="leads outside"):
        read_sample(tmp_path / "in/part.png")


def test_inputs_of_a_tree_are_one_file_per_sample(tmp_path):
    write_tree(tmp_path, ("a", "b"))
    assert [str(path.relative_to(tmp_path)) for path in list_inputs(tmp_path / "a/test")] == [
        f"a/test/{defect}/rgb/{stem}.png" for defect in ("dent", "good") for stem in ("000", "001")
    ]
    assert len(list_inputs(tmp_path)) == 18
    assert len(list_inputs(tmp_path / "a/test/good/rgb")) == 2
    one = tmp_path / "a/test/good/rgb/000.png"
    assert list_inputs(one) == [one]
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises(DataError, match="expected"):
            list_inputs(path)


@pytest.mark.parametrize("inside", ["a/test/dent/rgb", "a/test/dent", "a/test", "a"])
def test_a_short_path_in_the_working_directory_names_the_whole_sample_too(tmp_path, monkeypatch, inside):
    write_tree(tmp_path)
    monkeypatch.chdir(tmp_path / inside)
    sample = read_sample(os.path.relpath(tmp_path / "a/test/dent/rgb/000.png"))
    assert (sample.label, sample.meta.id, sample.meta.category) == (1, "test/dent/000", "a")
    assert sample.modalities == ("rgb", "xyz")


def test_siblings_are_found_without_a_look_at_the_rest_of_the_folder(tmp_path, monkeypatch):
    write_tree(tmp_path)
    rgb, xyz, _ = make_arrays()
    Image.fromarray(rgb).save(tmp_path / "part.PNG")
    tifffile.imwrite(tmp_path / "part.TIFF", xyz, photometric="rgb")

    def refuse(*_):
        raise AssertionError("listed a folder")

    for module, name in ((os, "scandir"), (os, "listdir"), (Path, "glob"), (Path, "iterdir")):
        monkeypatch.setattr(module, name, refuse)
    assert set(find_record(tmp_path / "a/test/dent/rgb/000.png").paths) == {"rgb", "xyz", "gt"}
    for name in ("part.PNG", "part.TIFF"):
        assert set(find_record(tmp_path / name).paths) == {"rgb", "xyz"}


def test_two_siblings_of_one_role_are_refused(tmp_path):
    write_tree(tmp_path)
    np.save(tmp_path / "a/test/dent/xyz/000.npy", make_arrays()[1])
    with pytest.raises(DataError, match=r"000\.tiff and 000\.npy are two files for one sample"):
        find_record(tmp_path / "a/test/dent/rgb/000.png")
    Image.fromarray(make_arrays()[0]).save(tmp_path / "a/test/dent/rgb/001.jpg")
    with pytest.raises(DataError, match=r"001\.png and 001\.jpg are two files for one sample"):
        find_record(tmp_path / "a/test/dent/rgb/001.jpg")
    assert find_record(tmp_path / "a/test/good/rgb/001.png").id == "test/good/001"
