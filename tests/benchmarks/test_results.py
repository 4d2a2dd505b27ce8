"""The results page: what it says of whole, partial, impossible, failed and missing lines."""

from __future__ import annotations

import json

import pytest

from benchmarks import results as module
from benchmarks.plan import DATA, METHODS, SETTINGS, find_obstacle, method_options
from benchmarks.published import FIGURES, find_figures
from benchmarks.results import main, run_results
from benchmarks.results_page import read_kept
from mm3dad.errors import ConfigError, DataError
from tests.run import toy

toy.register()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return toy.write_tree(tmp_path_factory.mktemp("tree"), ("cookie", "gasket"))


def table(page, title):
    """The lines of one table as {method: {column: cell}}."""
    body = page.read_text().split(f"### {title}\n")[1].split("\n\n")[0].splitlines()
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in body)
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in lines}


def run(tree, folder, **options):
    settings = options.pop("settings", ["synthetic-full", "synthetic-4shot", "synthetic-zero"])
    return run_results({"synthetic": tree}, folder / "out", folder / "page.md", settings=settings, **{"methods": ["toy"], **options})


def test_a_line_is_the_mean_of_its_runs_with_its_published_figure_beside(tree, tmp_path):
    assert run(tree, tmp_path, methods=["toy", "toyset"], seeds=(0, 1)) == {}
    lines = table(tmp_path / "page.md", "Synthetic parts: all normal samples")
    kept = json.loads((tmp_path / "out/synthetic-full/toy/evaluate.json").read_text())
    assert lines["toy"]["image AUROC"] == f"{kept['mean']['image_auroc']:.3f} ± {kept['mean']['std']['image_auroc']:.3f}"
    assert lines["toy"]["AUPRO@0.3"].startswith(f"{kept['mean']['aupro_30']:.3f}")
    assert lines["toy"]["fitted on"] == "all normal samples"
    assert lines["toyset"]["fitted on"] == "all normal samples; **transductive**"
    assert lines["toy"]["mean over, or why not"] == "**part**: 2 of 8 categories, seeds 0, 1"
    first = [one["metrics"]["fit_seconds"] for one in kept["runs"] if one["seed"] == 0]
    assert float(lines["toy"]["fit, s"]) == pytest.approx(sum(first) / 2, rel=0.01)  # later seeds may find features in the cache
    assert table(tmp_path / "page.md", "Synthetic parts: 4-shot")["toy"]["fit, s"] == "-"
    assert kept["command"].startswith("mm3dad evaluate toy --dataset synthetic")
    assert table(tmp_path / "page.md", "Synthetic parts: 4-shot")["toy"]["fitted on"] == "4 normal"
    # methods that were not run stand there all the same, each with the published figure and its source
    assert list(lines) == [*METHODS, "toy", "toyset"]
    assert lines["patchcore"]["published"] == "0.785 / 0.876 (MVTec 3D-AD; RGB, WideResNet-50-2)"
    assert lines["patchcore"]["source"] == "[1]" and '1. README of BTF\'s code, raw data, "RGB iNet".' in (tmp_path / "page.md").read_text()
    assert lines["patchcore"]["image AUROC"] == "-" and lines["patchcore"]["mean over, or why not"] == "not run yet"


def test_settings_a_method_cannot_do_give_the_reason(tree, tmp_path):
    run(tree, tmp_path)
    page = tmp_path / "page.md"
    assert table(page, "Synthetic parts: no normal sample of the part")["toy"]["mean over, or why not"].startswith(
        "learns from normal samples"
    )
    for method in ("mrad", "muscv2"):
        line = table(page, "Synthetic parts: 4-shot")[method]
        assert line["mean over, or why not"].startswith("zero-shot") and line["published"] == "-"
        assert find_obstacle(method, "zero") is None
    assert not (tmp_path / "out/synthetic-zero").exists()


def test_a_part_is_added_to_what_is_there_and_named(tree, tmp_path):
    whole = "**part**: 2 of 8 categories, seeds 0, 1"
    run(tree, tmp_path, categories=["cookie"], seeds=(0,), settings=["synthetic-full"])
    line = table(tmp_path / "page.md", "Synthetic parts: all normal samples")["toy"]
    assert line["mean over, or why not"] == "**part**: 1 of 8 categories, seeds 0" and "±" not in line["image AUROC"]
    run(tree, tmp_path, seeds=(0, 1), settings=["synthetic-full"])
    assert table(tmp_path / "page.md", "Synthetic parts: all normal samples")["toy"]["mean over, or why not"] == whole
    before = toy.Toy.fits
    run(tree, tmp_path, categories=["gasket"], seeds=(1,), settings=["synthetic-full"])  # all there: nothing is fitted, nothing is lost
    assert toy.Toy.fits == before
    assert table(tmp_path / "page.md", "Synthetic parts: all normal samples")["toy"]["mean over, or why not"] == whole
    run(tree, tmp_path, categories=["gasket"], seeds=(2,), settings=["synthetic-full"])
    line = table(tmp_path / "page.md", "Synthetic parts: all normal samples")["toy"]
    assert line["mean over, or why not"] == "**part**: 2 of 8 categories, seeds 0, 1, 2, not each category with each seed"


def test_a_whole_line_is_not_called_a_part(tmp_path):
    road = toy.write_tree(tmp_path / "tree", ("road",))
    for seeds, said in (((0, 1), "**part**: 1 of 1 categories, seeds 0, 1"), ((0, 1, 2), "1 of 1 categories, seeds 0, 1, 2")):
        run_results({"road": road}, tmp_path / "out", tmp_path / "page.md", settings=["road-full"], methods=["toy"], seeds=seeds)
        assert table(tmp_path / "page.md", "Road: all normal samples")["toy"]["mean over, or why not"] == said


def test_runs_of_another_configuration_do_not_count(tree, tmp_path):
    run(tree, tmp_path, seeds=(0,), settings=["synthetic-full"])
    folder = tmp_path / "out/synthetic-full/toy"
    path = folder / "runs/gasket-seed0-full/run.json"
    kept = json.loads(path.read_text())
    kept["identity"]["config"]["gain"] = 2.0
    path.write_text(json.dumps(kept))
    assert [one["category"] for one in read_kept(folder)[1]] == ["cookie"]


def test_missing_data_are_left_out_and_named(tree, tmp_path):
    settings = ["synthetic-full", "road-full", "tire-full"]
    roots = {"synthetic": tree, "road": tmp_path / "gone"}
    assert run_results(roots, tmp_path / "out", tmp_path / "page.md", settings=settings, methods=["toy"], seeds=(0,)) == {}
    text = tmp_path.joinpath("page.md").read_text()
    assert "Missing: the folder given by `--road` is not there." in text
    assert "Missing: no folder was given (`--tire DIR`)." in text
    assert "Missing: not run yet." in text.split("## Eyecandies")[1]


def test_a_failed_line_says_why_and_the_others_go_on(tree, tmp_path, monkeypatch):
    def stop(*words, **options):
        raise DataError("disk full")

    lone = toy.write_tree(tmp_path / "lone", ("cookie",), train=3)
    failed = run(lone, tmp_path, seeds=(0,))
    assert list(failed) == [("synthetic-4shot", "toy")] and "between 1 and the 3" in failed["synthetic-4shot", "toy"]
    assert "between 1 and the 3" in table(tmp_path / "page.md", "Synthetic parts: 4-shot")["toy"]["mean over, or why not"]
    assert table(tmp_path / "page.md", "Synthetic parts: all normal samples")["toy"]["image AUROC"] != "-"
    monkeypatch.setattr(module, "evaluate", stop)
    run(lone, tmp_path, settings=["synthetic-full"])
    assert table(tmp_path / "page.md", "Synthetic parts: all normal samples")["toy"]["mean over, or why not"].endswith("seeds 0; disk full")
    monkeypatch.undo()
    run_results({}, tmp_path / "out", tmp_path / "page.md", settings=["synthetic-full"], methods=["toy"])  # what is kept needs no folder
    assert table(tmp_path / "page.md", "Synthetic parts: all normal samples")["toy"]["mean over, or why not"].endswith("seeds 0")
    words = ["--synthetic", str(lone), "--out", str(tmp_path / "out"), "--page", str(tmp_path / "page.md"), "--methods", "toy"]
    assert main([*words, "--settings", "synthetic-4shot"]) == 1
    assert main([*words, "--settings", "synthetic-full", "--seeds", "0"]) == 0


def test_the_page_names_no_folder_of_this_machine(tree, tmp_path, monkeypatch):
    def fail(method, kind, root, **options):
        raise DataError(f"{root}/cookie is damaged, see {options['out']}/x and {root.resolve()}")

    monkeypatch.setattr(module, "evaluate", fail)
    failed = run(tree, tmp_path, settings=["synthetic-full"])
    assert failed == {("synthetic-full", "toy"): f"{tree.name}/cookie is damaged, see out/synthetic-full/toy/x and {tree.name}"}


def test_zero_shot_methods_run_under_one_seed_and_get_their_auxiliary_set(tree, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "evaluate", lambda method, kind, root, **options: calls.append((method, str(root), options)))
    roots = {"synthetic": tree, "road": tree, "tire": tree}
    settings = [name for name in SETTINGS if name.startswith(("synthetic", "road"))]
    run_results(roots, tmp_path / "out", tmp_path / "page.md", settings=settings, methods=["mrad", "muscv2", "cif"])
    by = {(method, options["out"].parent.name): options for method, _, options in calls}
    assert {name for _, name in by} == {"synthetic-full", "synthetic-4shot", "synthetic-1shot", "synthetic-zero"} | {
        f"road-{part}" for part in ("full", "4shot", "1shot", "zero")
    }
    assert by["mrad", "synthetic-zero"]["seeds"] == (0,) and by["mrad", "synthetic-zero"]["auxiliary"] is None
    assert by["mrad", "road-zero"]["auxiliary"] == f"synthetic:{tree}" and by["mrad", "road-zero"]["categories"] == ["road"]
    assert by["muscv2", "road-zero"]["auxiliary"] is None
    assert by["cif", "road-4shot"]["shots"] == [4] and by["cif", "road-4shot"]["seeds"] == (0, 1, 2)
    run_results({"road": tree}, tmp_path / "out", tmp_path / "other.md", settings=["road-zero"], methods=["mrad"])
    assert len(calls) == len(by)


def test_wrong_words_are_refused(tree, tmp_path, capsys):
    with pytest.raises(ConfigError, match="synthetic-full"):
        run(tree, tmp_path, settings=["synthetic-ful"])
    with pytest.raises(ConfigError, match="patchcore"):
        run(tree, tmp_path, methods=["patchcor"])
    with pytest.raises(SystemExit) as stop:
        main(["--settings", "nonsense"])
    assert stop.value.code == 2 and "nonsense" in capsys.readouterr().err


def test_figures_are_quoted_with_a_source_and_never_of_another_setting():
    names = {data.name for data in DATA}
    for figure in FIGURES:
        assert figure.method in METHODS and figure.source and figure.values
        assert figure.data not in names or f"{figure.data}-{figure.setting}" in SETTINGS
    assert [figure.values for figure in find_figures("muscv2", "eyecandies", "zero")] == ["0.839 / 0.901"]
    assert [figure.values for figure in find_figures("muscv2", "road", "zero")] == ["0.881 / 0.970"]
    assert [figure.data for figure in find_figures("rad", "road", "1shot")] == ["MVTec-AD (2D)"]
    assert find_figures("patchcore", "mvtec3d", "1shot") == []


def test_published_options_are_options_of_their_methods(tmp_path):
    from mm3dad.run._arguments import make_detector

    for data in DATA:
        for method in METHODS:
            make_detector(method, method_options(method, data, True, tmp_path), 0)
            assert "backbone" not in method_options(method, data, False, tmp_path)
    eyecandies = next(data for data in DATA if data.name == "eyecandies")
    assert method_options("cif", eyecandies, True, tmp_path)["hyperedges"] == 8
