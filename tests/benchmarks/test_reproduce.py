"""The published protocol from the raw layouts to the page, on tiny trees; and what is said of folders that are something else."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.plan import METHODS, method_options
from benchmarks.reproduce import check_weights, main, reproduce
from mm3dad.errors import DataError, WeightsError
from mm3dad.registry import METHODS as METHODS_BY_NAME
from tests.benchmarks.test_results import table
from tests.data.test_eyecandies import write_candies
from tests.data.trees import write_tree
from tests.methods.parts import SHORT

PARTS = ("full", "zero")
# One layout meets every method; the other one of each kind, to save time.
CHOSEN = {"mvtec3d": METHODS, "eyecandies": ("patchcore", "cif", "mrad", "muscv2")}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    write_tree(root / "mvtec3d", ("bagel", "tire"), train=2, validation=1, test_good=1, test_bad=2, size=64)
    for category in ("Confetto", "GummyBear"):
        write_candies(root / "eyecandies", category)
    return {name: root / name for name in ("mvtec3d", "eyecandies")}


@pytest.fixture(scope="module")
def finished(trees, tmp_path_factory):
    """Both data sets, one after the other, with the embedded backbone, as `make reproduce BACKBONE=default` runs it."""
    folder = tmp_path_factory.mktemp("reproduced")
    options = {"published": False, "settings": [f"{name}-{part}" for name in trees for part in PARTS], "seeds": (0,), "workers": 1}
    failed = {}
    few = {"cfm": {"epochs": 2, "hidden": 64}, "mentor3ad": {"epochs": 2, "mentor_epochs": 1, "hidden": 64}, **SHORT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.results.method_options", lambda method, *words: method_options(method, *words) | few.get(method, {}))
        for name, methods in CHOSEN.items():
            failed |= reproduce({name: trees[name]}, folder / "out", folder / "page.md", methods=methods, **options)
    return folder, failed, options


def test_every_method_runs_from_both_raw_layouts_to_the_page(finished):
    folder, failed, _ = finished
    assert failed == {}
    for title, methods in zip(("MVTec 3D-AD", "Eyecandies"), CHOSEN.values(), strict=True):
        fitted = table(folder / "page.md", f"{title}: all normal samples")
        zero = table(folder / "page.md", f"{title}: no normal sample of the part")
        for method in methods:
            line = (zero if method in ("mrad", "muscv2") else fitted)[method]
            assert 0 <= float(line["image AUROC"]) <= 1 and 0 <= float(line["AUPRO@0.3"]) <= 1
            assert line["mean over, or why not"] == "**part**: 2 of 10 categories, seeds 0"
            has_backbone = any(field.name == "backbone" for field in dataclasses.fields(METHODS_BY_NAME.get(method).Config))
            assert ("efficientnet_lite0" if has_backbone else "no pretrained weights") in line["features"]
        assert zero["muscv2"]["fitted on"] == "nothing; **transductive**"
        assert zero["mrad"]["fitted on"].startswith("**auxiliary**")
    assert table(folder / "page.md", "MVTec 3D-AD: no normal sample of the part")["muscv2"]["published"] == "0.881 / 0.970 (RGB + 3D)"


def test_data_are_prepared_once_and_as_each_paper_does(finished):
    folder = finished[0]
    assert sorted(path.name for path in (folder / "out/data").iterdir()) == ["eyecandies-m3dm", "eyecandies-musc", "mvtec3d"]


def test_a_second_call_goes_on_and_computes_nothing(finished, trees, monkeypatch):
    folder, _, options = finished
    page = (folder / "page.md").read_text()
    monkeypatch.setattr("mm3dad.run._unit.fit_on", lambda *words: pytest.fail("fitted again"))
    monkeypatch.setattr("mm3dad.run.prepare._prepare_one", lambda *words: pytest.fail("prepared again"))
    few = {**options, "methods": ("patchcore", "muscv2"), "settings": ["mvtec3d-full", "eyecandies-zero"]}
    assert reproduce(trees, folder / "out", folder / "page.md", **few) == {}
    assert (folder / "page.md").read_text() == page


@pytest.mark.parametrize(
    ("name", "other", "said"),
    [
        ("mvtec3d", "gone", "expected MVTec 3D-AD at .*gone, found nothing"),
        ("mvtec3d", "eyecandies", "give it as EYECANDIES"),
        ("eyecandies", "mvtec3d", "is not the Eyecandies download"),
        ("eyecandies", "mvtec3d/bagel", "is not the Eyecandies download"),
        ("mvtec3d", "mvtec3d/bagel", "category itself, give its parent"),
    ],
)
def test_a_folder_of_something_else_is_refused(trees, tmp_path, name, other, said):
    root = trees["mvtec3d"].parent / other
    with pytest.raises(DataError, match=said):
        reproduce({name: root}, tmp_path / "out", tmp_path / "page.md", methods=["duet"], published=False)
    assert not (tmp_path / "out").exists()


def test_a_category_without_a_modality_is_refused(tmp_path):
    write_tree(tmp_path / "rgb", ("bagel",), modalities=("rgb",))
    with pytest.raises(DataError, match="bagel has rgb files only"):
        reproduce({"mvtec3d": tmp_path / "rgb"}, tmp_path / "out", tmp_path / "page.md", methods=["duet"], published=False)


def test_unknown_categories_and_no_data_are_refused(trees, tmp_path, capsys):
    with pytest.raises(DataError, match="none of the categories begel"):
        reproduce(trees, tmp_path / "out", tmp_path / "page.md", methods=["duet"], categories=["begel"], published=False)
    for words, said in (([], "MVTEC=DIR"), (["--mvtec3d", str(tmp_path / "gone")], "found nothing")):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--out", str(tmp_path / "out"), "--page", str(tmp_path / "page.md")])
        assert stop.value.code == 2 and said in capsys.readouterr().err


def test_missing_weights_are_all_named_with_the_cure_before_anything_is_prepared(trees, tmp_path, monkeypatch):
    def load(architecture, row, weights, seed):
        raise WeightsError(f"cannot get {architecture}; give a file with weights=PATH")

    monkeypatch.setattr("mm3dad.features.rgb._load_network", load)
    with pytest.raises(WeightsError, match=r"(?s)BACKBONE=default.*patchcore \(wide_resnet50_2\).*rad \(dinov3_vitb16\)"):
        reproduce(trees, tmp_path / "out", tmp_path / "page.md", methods=["patchcore", "rad"])
    assert not (tmp_path / "out").exists()


def test_weights_that_are_there_pass(monkeypatch):
    monkeypatch.setattr("benchmarks.plan.PUBLISHED", {"patchcore": {}, "rad": {}})
    check_weights(["patchcore", "rad"])
