from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

import mm3dad
from mm3dad.cli import demo, main, terminal, verbs
from mm3dad.cli.demo import run_demo
from mm3dad.cli.parser import build_parser
from mm3dad.run.table import METRICS
from tests.run import toy

toy.register()
VERBS = (
    "demo", "prepare", "doctor", "fit", "predict", "calibrate", "drift",
    "evaluate", "report", "synthesize", "view", "list", "serve", "benchmark", "export", "push", "pull", "completion",
)  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return toy.write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def model(tree):
    folder = tree.parent / "toy-model"
    assert main(["fit", "toy", "--dataset", "mvtec3d", "--root", str(tree), "--category", "nut", "--out", str(folder)]) == 0
    return folder


def data(tree):
    return ["--dataset", "mvtec3d", "--root", str(tree)]


def one_line(capsys, *parts):
    """The single line on stderr, which holds all `parts`."""
    (line,) = capsys.readouterr().err.splitlines()
    for part in parts:
        assert part in line
    return line


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mm3dad {mm3dad.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_that_parses(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "exit status: 0 done" in text
    examples = [line.partition(" > ")[0].split() for line in text.splitlines() if line.startswith(f"  mm3dad {verb}")]
    assert examples
    for words in examples:
        assert build_parser().parse_args(words[1:]).verb == verb


def test_the_verbs_of_the_help_are_those_that_run():
    assert set(VERBS) == set(verbs.VERBS)


@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_help_after_a_method_lists_its_options(verb, capsys):
    assert main([verb, "toy", "--help"]) == 0
    text = capsys.readouterr().out
    assert "options of toy (--set key=value)" in text and "gain=1.0" in text and "factor of all scores" in text
    assert "seed=" not in text.partition("options of toy")[2]
    assert main([verb, "toi", "--help"]) == 2
    one_line(capsys, "did you mean 'toy'")


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from mm3dad.cli import main; main(['evaluate', '--help']);"
        "sys.exit(', '.join({'torch', 'timm', 'open3d', 'rich', 'numpy'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["required", "VERB"]),
        (["evalute"], ["invalid choice: 'evalute'", "evaluate"]),
        (["fit", "toy"], ["required", "--dataset", "--out", "`mm3dad fit --help` shows an example"]),
        (["fit", "toy", "--set", "gain"], ["expected key=value, got 'gain'"]),
        (["fit", "toy", "--shots", "0"], ["shots are a whole number from 1, or full, got '0'"]),
        (["evaluate", "toy", "--shots", "1,two"], ["got 'two'"]),
        (["evaluate", "toy", "--seeds", "1,-2"], ["expected a whole number from 0, got '-2'"]),
        (["list", "weight"], ["invalid choice: 'weight'"]),
        (["prepare", "synthetic", "--out", "x", "--categories", ","], ["names separated by commas"]),
        (["prepare", "synthetic", "--out", "x", "--size", "big"], ["expected a whole number from 1, got 'big'"]),
        (["prepare", "synthetic", "--out", "x", "--root", "y"], ["takes neither --root nor --from"]),
        (["prepare", "synthetic", "--out", "x", "--set", "train=many"], ["number of train samples", "'many'"]),
        (["prepare", "mvtec3d", "--out", "x", "--root", "y", "--size", "8"], ["--size belongs to prepare synthetic"]),
        (["doctor"], ["either a PATH or --self"]),
        (["doctor", "missing"], ["missing"]),
        (["report", "missing"], ["missing"]),
        (["view", "missing"], ["missing"]),
        (["view", "missing", "--serve"], ["missing"]),
        (["view", "missing", "--serve", "--window"], ["one of them alone"]),
        (["view", "missing", "--window", "--html", "a.html"], ["write no file"]),
        (["view", "missing", "--compare", "other"], ["--serve or --window"]),
        (["view", "missing", "--model", "nothing"], ["model.json"]),
        (["predict", "missing", "a.png"], ["saved model", "mm3dad fit"]),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(words, parts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    one_line(capsys, *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--category", "nutt"], ["no category 'nutt'; did you mean 'nut'"]),
        (["--set", "gian=2"], ["unknown option 'gian'", "did you mean 'gain'"]),
        (["--set", "gain=2", "--set", "gain=3"], ["given twice"]),
        (["--set", "eval_size=0"], ["eval_size must be"]),
        (["--set", "seed=1"], ["use --seed"]),
        (["--shots", "99"], ["training samples there are, got 99"]),
        (["--device", "gpu"], ["device must be auto"]),
        (["--overwrite", "--rescore"], ["exclude each other"]),
        (["--rescore"], ["run once without --rescore"]),
    ],
)
def test_evaluate_finds_bad_arguments_before_any_work(tree, tmp_path, capsys, words, parts):
    fits = toy.Toy.fits
    assert main(["evaluate", "toy", *data(tree), "--out", str(tmp_path / "out"), *words]) == 2
    one_line(capsys, *parts)
    assert toy.Toy.fits == fits and not (tmp_path / "out").exists()


def test_evaluate_prints_a_table_and_says_where_everything_lies(tree, tmp_path, capsys):
    words = [
        "evaluate",
        "toy",
        *data(tree),
        *["--shots", "full,2", "--seeds", "0,1", "--set", "eval_size=16", "--json"],
        str(tmp_path / "r.json"),
    ]
    assert main(words) == 0
    text = capsys.readouterr().out
    for part in (
        "I-AUROC",
        "AUPRO@0.3",
        "AUPRO@0.01",
        "ms p50",
        "bank MB",
        "bolt",
        "nut",
        "mean",
        "±",
        "fitted on 2 good parts",
        "seeds 0, 1",
    ):
        assert part in text
    result = json.loads((tmp_path / "r.json").read_text())
    assert f"{result['mean']['aupro_30']:.3f} ±{result['mean']['std']['aupro_30']:.3f}" in text
    for path in (tmp_path / "r.json", tmp_path / "r/table.csv", tmp_path / "r/report.html"):
        assert str(path) in text and path.is_file()
    fits = toy.Toy.fits
    assert main([*words, "--rescore"]) == 0 and toy.Toy.fits == fits
    assert result["command"].startswith("mm3dad evaluate toy --dataset mvtec3d --root")
    assert build_parser().parse_args(result["command"].split()[1:]).seeds == [0, 1]


def test_report_and_view_of_an_evaluation(tree, tmp_path, capsys):
    words = ["evaluate", "toy", *data(tree), "--category", "nut", "--set", "eval_size=16", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert main(["report", str(tmp_path / "out"), "--html", str(tmp_path / "r.html")]) == 0
    assert "<html" in (tmp_path / "r.html").read_text()
    assert main(["view", str(tmp_path / "out"), "--html", str(tmp_path / "c.html"), "--png", str(tmp_path / "c.png")]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(tmp_path / "c.html"), str(tmp_path / "c.png")]
    assert Image.open(tmp_path / "c.png").width > 100


def test_fit_says_what_it_did(tree, tmp_path, capsys):
    words = [
        "fit",
        "toy",
        *data(tree),
        *["--shots", "2", "--set", "gain=2", "--out"],
        str(tmp_path / "m"),
        "--json",
        str(tmp_path / "fit.json"),
    ]
    assert main(words) == 0
    assert capsys.readouterr().out.count("toy fitted on 2 samples of") == 2
    assert [row["categories"] for row in json.loads((tmp_path / "fit.json").read_text())] == [["bolt"], ["nut"]]


def test_predict_prints_scores_and_draws_heat_maps(tree, model, tmp_path, capsys):
    words = ["predict", str(model), str(tree / "nut/test"), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "p.json")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:6]] == [f"test/{kind}/{i:03d}" for kind in ("dent", "good") for i in range(3)]
    assert all("(threshold " in line for line in lines[:6]) and lines[0].endswith(": defective")
    assert Image.open(tmp_path / "out/heatmaps/test__dent__000.png").width > 100
    assert len(json.loads((tmp_path / "p.json").read_text())) == 6
    assert main(["report", str(tmp_path / "out")]) == 0


def test_predict_goes_on_after_a_bad_file_and_lists_it(tree, model, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes((tree / "nut/test/dent/rgb/000.png").read_bytes()[:200])
    assert main(["predict", str(model), str(tmp_path / "bad.png"), str(tree / "nut/test/dent/rgb/000.png")]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("test/dent/000: score")
    first, last = captured.err.splitlines()
    assert "bad.png was not scored: " in first and "1 input not scored, 1 scored; mend" in last


def test_doctor_tells_errors_from_health(tree, tmp_path, capsys):
    assert main(["doctor", str(tree), "--json", str(tmp_path / "d.json")]) == 0
    assert "0 errors" in capsys.readouterr().out and isinstance(json.loads((tmp_path / "d.json").read_text()), list)
    root = toy.write_tree(tmp_path / "tree", ["nut"])
    (root / "nut/train/good/rgb/001.png").write_bytes(b"broken")
    assert main(["doctor", str(root)]) == 2
    assert "001.png" in capsys.readouterr().out


def test_doctor_of_the_installation(capsys, tmp_path):
    assert main(["doctor", "--self", "--json", str(tmp_path / "d.json")]) in (0, 1)
    assert "versions:" in capsys.readouterr().out and "torch" in json.loads((tmp_path / "d.json").read_text())["versions"]


@pytest.mark.parametrize("kind", ["synthesizers", "datasets", "weights"])
def test_list(kind, capsys, tmp_path):
    assert main(["list", kind, "--json", str(tmp_path / "l.json")]) == 0
    text = capsys.readouterr().out
    rows = json.loads((tmp_path / "l.json").read_text())
    assert kind in text and all(row["name"] in text for row in rows)
    if kind == "weights":
        assert {"name", "source", "sha256", "bytes", "licence"} == rows[0].keys() and rows[0]["sha256"] in text


def test_prepare_synthetic(tmp_path, capsys):
    words = [
        *["prepare", "synthetic", "--categories", "gasket", "--size", "64", "--seed", "1", "--workers", "1", "--out"],
        str(tmp_path / "s"),
    ]
    counts = ["--set", "train=2", "--set", "validation=1", "--set", "good=1", "--set", "defect=1"]
    assert main([*words, *counts, "--json", str(tmp_path / "p.json")]) == 0
    assert capsys.readouterr().out == f"out: {tmp_path / 's'}\n"
    assert len(mm3dad.open_dataset("synthetic", tmp_path / "s", "gasket", "train")) == 2
    assert main([*words, "--set", "trian=2"]) == 2
    one_line(capsys, "did you mean 'train'")


def test_the_demo_shows_everything_and_reuses_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "GOOD", 2)
    monkeypatch.setattr(demo, "DEFECT", 1)
    arguments = {"categories": ["gasket", "cookie"], "size": 64, "train": 4, "method": "toy"}
    result = run_demo(tmp_path / "demo", **arguments)
    text = capsys.readouterr().out
    for name in ("report.html", "cloud.html", "picture.png", "results/evaluate.json", "results/table.csv"):
        assert (tmp_path / "demo" / name).is_file()
    assert "mm3dad predict" in text and list(result["categories"]) == ["gasket", "cookie"]
    assert Image.open(tmp_path / "demo/picture.png").height > 400  # a panel per category
    fits = toy.Toy.fits
    assert run_demo(tmp_path / "demo", **arguments) == result and toy.Toy.fits == fits


def test_the_demo_verb_passes_its_words(monkeypatch):
    seen = {}
    monkeypatch.setattr(demo, "run_demo", lambda out, **options: seen.update(options, out=out))
    assert main(["demo", "--out", "d", "--categories", "a,b", "--seed", "3", "--size", "200", "--train", "9", "--json", "f.json"]) == 0
    expected = {"out": "d", "categories": ["a", "b"], "seed": 3, "size": 200, "train": 9, "overwrite": False, "json_path": "f.json"}
    assert seen == expected


@pytest.mark.parametrize(
    ("error", "status", "part"),
    [
        (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
        (RuntimeError("two\nlines"), 1, "unexpected RuntimeError: two lines; run again with MM3DAD_DEBUG=1"),
        (mm3dad.errors.StorageError("cannot write x: disk full; free some space"), 1, "free some space"),
        (mm3dad.errors.DataError("expected a, got b; do c"), 2, "mm3dad: expected a, got b; do c"),
    ],
)
def test_failures_are_one_line_with_their_status(monkeypatch, capsys, error, status, part):
    def fail(arguments):
        raise error

    monkeypatch.setitem(verbs.VERBS, "list", fail)
    monkeypatch.delenv("MM3DAD_DEBUG", raising=False)
    assert main(["list"]) == status
    one_line(capsys, part)
    monkeypatch.setenv("MM3DAD_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["list"])


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -c \"import sys; from mm3dad.cli import main; sys.exit(main(['list', 'synthesizers']))\" | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "MM3DAD_DEBUG": ""})
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


def test_a_narrow_terminal_gets_fewer_columns(monkeypatch, capsys):
    row = {**dict.fromkeys(METRICS, 0.5), "std": dict.fromkeys(METRICS), "image_auroc_ci": [0.4, 0.6]}
    protocol = {"seeds": [0], "shots": ["full"], "models": "one model per category", "transductive": True}
    runs = [{"category": "nut", "metrics": {"notes": {"aupro_30": "2 defective samples have no mask"}}}]
    names = {"method": "toy", "dataset": {"name": "folder"}}
    result = {**names, "protocol": protocol, "runs": runs, "categories": {"nut": {**row, "aupro_30": None}}, "mean": row}
    terminal.print_results(result)
    text = capsys.readouterr().out
    assert "0.400 to 0.600" in text and "transductive" in text and "fitted on all good parts" in text
    terminal.print_results({**result, "protocol": {**protocol, "zero_shot": True}})
    assert "fitted on nothing (zero-shot), transductive: sees" in capsys.readouterr().out
    assert "not defined for nut: 2 defective samples have no mask" in text
    monkeypatch.setattr(terminal, "_width", lambda: 80)
    terminal.print_results(result)
    text = capsys.readouterr().out
    assert "0.400 to 0.600" not in text and "AUPRO@0.01" in text and max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "model", "--watch", "camera", "--workers", "2"], "--watch scores parts as they come, in one process"),
        (["predict", "model", "a.png", "--workers", "two"], "expected a number from 1, ray, ray:N or ray:ADDRESS, got 'two'"),
        (["fit", "toy", "--dataset", "mvtec3d", "--root", ".", "--out", "m", "--workers", "ray:"], "expected ray, ray:N"),
    ],
)
def test_workers_that_cannot_be_are_one_line(words, message, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
