"""The auxiliary set of a zero-shot method: chosen, checked, named, never the target's."""

from __future__ import annotations

import json
import shutil

import pytest

from mm3dad.errors import ConfigError, DataError
from mm3dad.methods import Needs
from mm3dad.registry import METHODS
from mm3dad.run.auxiliary import Source
from mm3dad.run.evaluate import evaluate
from mm3dad.run.fit import fit_detector
from tests.run import toy


class ToyAuxiliary(toy.Toy):
    """A toy that notes what it was fitted on."""

    name = "toyaux"
    needs = Needs(inputs=("rgb", "xyz"), settings=("auxiliary",))
    seen = ()

    def fit(self, samples, progress=None, validation=None):
        type(self).seen = [(sample.meta.category, sample.label, sample.mask is not None) for sample in samples]
        return super().fit(samples, progress, validation)


toy.register()
if "toyaux" not in METHODS.names():
    METHODS.register("toyaux", ToyAuxiliary)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return toy.write_tree(tmp_path_factory.mktemp("tree"), ("nut", "bolt", "washer"))


def run(tree, tmp_path, **options):
    return evaluate("toyaux", "mvtec3d", tree, eval_size=16, out=tmp_path / "out", **options)


def test_by_default_all_other_categories_and_the_result_says_so(tree, tmp_path):
    result = run(tree, tmp_path, categories=["nut"])
    assert {category for category, _, _ in ToyAuxiliary.seen} == {"bolt", "washer"}
    assert sorted(label for _, label, _ in ToyAuxiliary.seen) == [0] * 6 + [1] * 6 and all(mask for _, _, mask in ToyAuxiliary.seen)
    told = result["protocol"]["auxiliary"]
    assert told == {
        "nut": {
            "dataset": "mvtec3d", "root": str(tree.resolve()), "split": "test", "categories": ["bolt", "washer"],
            "samples": 12, "defective": 6,
        }
    }  # fmt: skip
    kept = json.loads((tmp_path / "out" / "runs" / "nut-seed0-full" / "run.json").read_text())
    assert kept["identity"]["auxiliary"] == told["nut"] and "bolt/test/dent/000" in kept["fitted_on"]
    assert "--auxiliary" not in result["command"]


def test_a_named_set_and_a_changed_one(tree, tmp_path):
    result = run(tree, tmp_path, categories=["nut"], auxiliary=f"mvtec3d:{tree}:washer")
    assert {category for category, _, _ in ToyAuxiliary.seen} == {"washer"}
    assert result["protocol"]["auxiliary"]["nut"]["categories"] == ["washer"] and f"--auxiliary mvtec3d:{tree}:washer" in result["command"]
    with pytest.raises(ConfigError, match="auxiliary"):
        run(tree, tmp_path, categories=["nut"], auxiliary=f"mvtec3d:{tree}:bolt")


def test_every_category_gets_its_own_set(tree, tmp_path):
    told = run(tree, tmp_path)["protocol"]["auxiliary"]
    assert {name: sorted(one["categories"]) for name, one in told.items()} == {
        "nut": ["bolt", "washer"], "bolt": ["nut", "washer"], "washer": ["bolt", "nut"],
    }  # fmt: skip


def test_fit_names_the_set_too(tree, tmp_path):
    row = fit_detector("toyaux", "mvtec3d", tree, tmp_path / "model", categories=["nut"])[0]
    assert row["auxiliary"]["categories"] == ["bolt", "washer"] and len(row["samples"]) == 12
    assert fit_detector("toy", "mvtec3d", tree, tmp_path / "toy", categories=["nut"])[0]["auxiliary"] is None


def test_the_target_is_never_in_it(tree, tmp_path):
    with pytest.raises(ConfigError, match=r"must not hold the category under test, 'nut'"):
        run(tree, tmp_path, categories=["nut"], auxiliary=f"mvtec3d:{tree}:nut,bolt")
    copy = shutil.copytree(tree, tmp_path / "copy")
    run(tree, tmp_path, categories=["nut"], auxiliary=f"mvtec3d:{copy}")
    assert {category for category, _, _ in ToyAuxiliary.seen} == {"bolt", "washer"}
    with pytest.raises(DataError, match=r"no category beside .*; give one with --auxiliary"):
        run(tree, tmp_path, multiclass=True)


def test_sets_without_masks_defects_or_normal_samples(tree, tmp_path):
    for gone, text in (("test/dent/gt", "has no mask"), ("test/dent", "no defective sample"), ("test/good", "no normal sample")):
        copy = shutil.copytree(tree, tmp_path / gone.replace("/", "-"))
        for category in ("bolt", "washer"):
            shutil.rmtree(copy / category / gone)
        with pytest.raises(DataError, match=text):
            run(copy, tmp_path, categories=["nut"])


def test_where_it_does_not_belong(tree, tmp_path):
    with pytest.raises(ConfigError, match="takes no auxiliary set"):
        evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", auxiliary=f"mvtec3d:{tree}")
    with pytest.raises(ConfigError, match="uses no sample of the target; leave --shots out"):
        run(tree, tmp_path, shots=[4])


def test_forms(tmp_path):
    assert Source.parse(f"mvtec3d:{tmp_path}") == Source("mvtec3d", str(tmp_path), None)
    assert Source.parse("synthetic:some/where:b,a,b") == Source("synthetic", "some/where", ("b", "a"))
    for wrong, text in (("mvtec:x", "unknown dataset 'mvtec'"), ("synthetic", "names no folder"), ("synthetic:", "names no folder")):
        with pytest.raises(ConfigError, match=text):
            Source.parse(wrong)
    with pytest.raises(DataError, match="expected a dataset folder"):
        evaluate("toyaux", "mvtec3d", toy.write_tree(tmp_path / "t"), out=tmp_path / "o", auxiliary="mvtec3d:no/where:nut")


def test_the_command_line_takes_it_and_the_table_names_it(tree, tmp_path, capsys):
    from mm3dad.cli import main

    words = ["evaluate", "toyaux", "--dataset", "mvtec3d", "--root", str(tree), "--category", "nut", "--set", "eval_size=16"]
    assert main([*words, "--auxiliary", f"mvtec3d:{tree}:washer", "--json", str(tmp_path / "x.json")]) == 0
    assert "auxiliary set mvtec3d (washer)" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "x.json").read_text())["protocol"]["auxiliary"]["nut"]["categories"] == ["washer"]
    assert main([*words, "--auxiliary", f"mvtec3d:{tree}:nut", "--json", str(tmp_path / "y.json")]) == 2
    assert main(["fit", *words[1:8], "--auxiliary", f"mvtec3d:{tree}", "--out", str(tmp_path / "model")]) == 0
    assert json.loads((tmp_path / "model" / "fit.json").read_text())["auxiliary"]["categories"] == ["bolt", "washer"]


@pytest.mark.parametrize("change", ["files", "masks"])
def test_a_change_of_the_auxiliary_files_forbids_reuse(tree, tmp_path, change):
    copy = shutil.copytree(tree, tmp_path / "tree")
    run(copy, tmp_path, categories=["nut"])
    part = copy / "washer" / "test" / "dent" / ("gt" if change == "masks" else "rgb") / "000.png"
    from PIL import Image

    Image.open(part).rotate(90).save(part)
    with pytest.raises(ConfigError, match="training_files"):
        run(copy, tmp_path, categories=["nut"])
