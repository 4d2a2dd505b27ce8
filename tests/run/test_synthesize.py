from __future__ import annotations

import json

import pytest
import torch

import mm3dad
from mm3dad.cli import main
from mm3dad.data.writing import write_sample
from mm3dad.errors import ConfigError, DataError, StorageError
from mm3dad.run import synthesize as module
from mm3dad.run.synthesize import synthesize
from tests.methods.parts import make_cloud, make_sample


@pytest.fixture
def tree(tmp_path):
    """A category with three training and two validation samples."""
    root = tmp_path / "data"
    for split, first, count in (("train", 0, 3), ("validation", 20, 2), ("test", 40, 1)):
        for number in range(count):
            write_sample(root, root / "plate" / split / "good", f"{number:03d}", make_sample(first + number, size=(40, 40)), False)
    return root


def run(tree, out, **options):
    return synthesize("dual", "mvtec3d", tree, out, count=3, workers=1, **options)


def read_all(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.*")) if path.suffix in (".png", ".tiff")}


def test_writes_a_data_set_with_exact_masks(tree, tmp_path):
    result = run(tree, tmp_path / "out")
    assert result["samples"] == result["done"] == 3 + 2 + 3 and result["folder"] == "test/dual"
    train, test = (mm3dad.open_dataset("mvtec3d", tmp_path / "out", "plate", split) for split in ("train", "test"))
    assert len(train) == 3 and [record.defect for record in test.records] == ["dual"] * 3 + ["good"] * 2
    normal = mm3dad.open_dataset("mvtec3d", tree, "plate", "validation")
    for number in range(3):
        made, base = test[number], normal[number % 2]
        altered = (made.xyz != base.xyz).any(0) | (made.rgb != base.rgb).any(0)
        assert made.label == 1 and bool(made.mask.any()) and not bool((altered & ~made.mask).any())
    assert torch.equal(test[3].xyz, normal[0].xyz)


def test_goes_on_after_an_interruption_to_the_same_files(tree, tmp_path, monkeypatch):
    run(tree, tmp_path / "whole")
    write, calls = module.write_sample, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise StorageError("cannot write: no space left; free some")
        return write(*arguments)

    monkeypatch.setattr(module, "write_sample", stop)
    with pytest.raises(StorageError):
        run(tree, tmp_path / "out")
    monkeypatch.setattr(module, "write_sample", write)
    again = run(tree, tmp_path / "out")
    assert (again["resumed"], again["done"]) == (4, 4) and not (tmp_path / "out" / ".journal").exists()
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")
    assert run(tree, tmp_path / "out")["done"] == 0


def test_neither_count_nor_seed_of_others_changes_a_defect(tree, tmp_path):
    run(tree, tmp_path / "three")
    synthesize("dual", "mvtec3d", tree, tmp_path / "one", count=1, workers=1)
    run(tree, tmp_path / "other", seed=1)
    name = "plate/test/dual/gt/000.png"
    files = {folder: (tmp_path / folder / name).read_bytes() for folder in ("three", "one", "other")}
    assert files["three"] == files["one"] != files["other"]


def test_without_validation_the_training_samples_are_taken(tree, tmp_path):
    for path in sorted((tree / "plate" / "validation").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert run(tree, tmp_path / "out")["samples"] == 3 + 3
    assert not (tmp_path / "out" / "plate" / "test" / "good").exists()


def test_bad_arguments(tree, tmp_path):
    run(tree, tmp_path / "out")
    with pytest.raises(DataError, match="was prepared with seed=0, not 1"):
        run(tree, tmp_path / "out", seed=1)
    with pytest.raises(DataError, match="must be apart"):
        run(tree, tree / "inside")
    with pytest.raises(ConfigError, match="unknown synthesizer 'dial'; did you mean 'dual'"):
        synthesize("dial", "mvtec3d", tree, tmp_path / "new")
    with pytest.raises(ConfigError, match="unknown option 'lwo'; did you mean 'low'"):
        run(tree, tmp_path / "new", options={"lwo": 1})
    with pytest.raises(DataError, match="no category 'plat'; did you mean 'plate'"):
        run(tree, tmp_path / "new", categories=["plat"])
    assert not (tmp_path / "new").exists()


def test_a_cloud_without_a_grid_is_refused(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_open_source", lambda source: type("Clouds", (), {"read": lambda self, record: make_cloud(1)})())
    with pytest.raises(DataError, match="cloud without a grid, which the layout cannot hold"):
        run(tree, tmp_path / "out")


def test_command_writes_contact_sheets(tree, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["synthesize", "stretch", "--dataset", "mvtec3d", "--root", str(tree), "--out", str(out), "--count", "3", "--workers", "1"]
    assert main([*words, "--set", "height=0.003", "--json", str(tmp_path / "made.json")]) == 0
    from PIL import Image

    with Image.open(out / "plate-stretch.png") as picture:
        assert picture.width > picture.height > 200
    assert json.loads((tmp_path / "made.json").read_text())["sheets"] == [str(out / "plate-stretch.png")]
    assert "contact sheet:" in capsys.readouterr().out
    assert main([*words[:1], "none", *words[2:]]) == 2


def test_seas_learns_first_and_says_from_what(tree, tmp_path, capsys):
    pytest.importorskip("diffusers")
    words = ["synthesize", "seas", "--dataset", "mvtec3d", "--root", str(tree), "--count", "1", "--workers", "1", "--out"]
    quick = {"weights": "tiny", "steps": 1, "mask_steps": 1, "batch": 1, "sampling": 3, "threshold": 0.01}
    options = [word for key, value in quick.items() for word in ("--set", f"{key}={value}")]
    assert main([*words, str(tmp_path / "none"), *options]) == 2
    assert "take dual or cutpaste" in capsys.readouterr().err
    for number in range(4):
        sample = make_sample(60 + number, size=(40, 40))
        sample.mask = torch.zeros(40, 40, dtype=torch.bool)
        sample.mask[10:20, 10:20] = True
        write_sample(tree, tree / "plate" / "test" / "hole", f"{number:03d}", sample, True)
    out = tmp_path / "out"
    assert main([*words, str(out), *options, "--json", str(tmp_path / "made.json")]) == 0
    said = capsys.readouterr().out
    assert "random weights" in said and "leave them out of every test" in said
    learned = json.loads((out / "manifest.json").read_text())["learned_from"]["plate"]
    assert learned["defects"] == ["test/hole/000"] and len(learned["normals"]) == 3 and learned["weights"] == "tiny"
    assert json.loads((tmp_path / "made.json").read_text())["learned_from"]["plate"] == learned
    made = mm3dad.open_dataset("mvtec3d", out, "plate", "test")
    assert all(sample.modalities == ("rgb",) and bool(sample.mask.any()) == bool(sample.label) for sample in made)
    assert (out / "plate-seas.png").is_file() and not list(out.rglob("checkpoint*"))
    assert main([*words, str(out), *options]) == 0
    assert main([*words, str(out), *options, "--set", "steps=2"]) == 2
