from __future__ import annotations

import json

import pytest
import yaml

from mm3dad.cli import main
from mm3dad.cli.config import parse_words, write_config
from mm3dad.cli.parser import build_parser, verb_parsers
from mm3dad.errors import ConfigError
from mm3dad.run._arguments import split_options
from tests.run import toy

toy.register()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return toy.write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def config(tree, tmp_path):
    """A file with everything an evaluation needs."""
    content = {
        "method": "toy",
        "dataset": "mvtec3d",
        "root": str(tree),
        "category": ["nut"],
        "shots": ["full", 2],
        "seeds": [0, 1],
        "set": {"eval_size": 16, "method": {"gain": 2, "modalities": ["rgb", "xyz"]}},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def parse(*words):
    parser = build_parser()
    return parse_words(parser, verb_parsers(parser), [str(word) for word in words])


def test_a_file_gives_the_words_of_a_verb(config, tree):
    found = parse("evaluate", "--config", config)
    words = ["evaluate", "toy", "--dataset", "mvtec3d", "--root", tree, "--category", "nut", "--shots", "full,2", "--seeds", "0,1"]
    sets = ["--set", "eval_size=16", "--set", "method.gain=2", "--set", "method.modalities=rgb,xyz"]
    assert vars(found) == {**vars(parse(*words, *sets)), "config": str(config)}


def test_the_command_line_goes_before_the_file(config):
    found = parse("evaluate", "--config", config, "--category", "bolt", "--seeds", "3", "--set", "gain=5", "--set", "eval_size=native")
    assert (found.category, found.seeds, found.shots) == (["bolt"], [3], [None, 2])
    assert found.options == [("method.modalities", "rgb,xyz"), ("gain", "5"), ("eval_size", "native")]
    assert parse("evaluate", "other", f"--config={config}").method == "other"
    assert parse("evaluate", "--config", config, "--set", "method.gain=7").options[-1] == ("method.gain", "7")


def test_of_words_that_exclude_each_other_the_command_line_has_its_own(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("folder: m\ndataset: folder\nroot: d\ncategory: part\nfalse-alarms: 0.01\n")
    found = parse("calibrate", "--config", path)
    assert (found.folder, found.false_alarms, found.f1, found.category) == ("m", 0.01, False, ["part"])
    found = parse("calibrate", "--config", path, "--f1")
    assert (found.false_alarms, found.f1) == (None, True)


def test_every_verb_takes_a_file_and_a_list_of_inputs_may_come_from_it(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("folder: m\ninputs: [a.png, b.png]\nout: o\n")
    found = parse("predict", "--config", path)
    assert (found.folder, found.inputs, found.out, found.watch) == ("m", ["a.png", "b.png"], "o", None)
    assert parse("predict", "other", "c.png", "--config", path).inputs == ["c.png"]
    assert all(any(action.dest == "config" for action in verb._actions) for verb in verb_parsers(build_parser()).values())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("datset: mvtec3d", ["unknown option 'datset'", "did you mean 'dataset'"]),
        ("config: other.yaml", ["unknown option 'config'"]),
        ("1: a", ["unknown option 1"]),
        ("shots: 0", ["shots:", "whole number from 1, or full"]),
        ("seeds: [0, one]", ["seeds:", "'one'"]),
        ("multiclass: maybe", ["multiclass:", "expected true or false"]),
        ("category: []", ["category:", "expected a value"]),
        ("root: {a: b}", ["root:", "expected a value"]),
        ("set: [gain]", ["set must hold names and values"]),
        ("set: {method: {gian: 1}}", ["unknown option 'method.gian'", "did you mean 'method.gain'"]),
        ("set: {gian: 1}", ["unknown option 'gian'", "did you mean 'gain'"]),
        ("set: {model: {gain: 1}}", ["unknown option 'model.gain'"]),
        ("set: {gain: 1, method: {gain: 2}}", ["gain was given twice"]),
        ("set: {gain: [1, 2]}", ["gain must be a number"]),
        ("- evaluate", ["must hold names and values, got list"]),
        ("a: [", ["not readable YAML"]),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(tree, tmp_path, capsys, text, parts):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    words = ["evaluate", "toy", "--dataset", "mvtec3d", "--root", str(tree), "--out", str(tmp_path / "out"), "--config", str(path)]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_a_missing_word(tmp_path, capsys):
    assert main(["evaluate", "--config", str(tmp_path / "no.yaml")]) == 2
    assert "found none" in capsys.readouterr().err
    assert main(["evaluate", "--config"]) == 2
    assert "expected one argument" in capsys.readouterr().err
    (tmp_path / "half.yaml").write_text("method: toy\n")
    assert main(["evaluate", "--config", str(tmp_path / "half.yaml")]) == 2
    assert "--dataset, --root" in capsys.readouterr().err


def test_the_resolved_configuration_lies_beside_the_result_and_repeats_it(config, tmp_path):
    assert main(["evaluate", "--config", str(config), "--out", str(tmp_path / "a"), "--set", "gain=3"]) == 0
    kept = yaml.safe_load((tmp_path / "a/config.yaml").read_text())
    assert kept["set"] == {"eval_size": 16, "method": {"modalities": ["rgb", "xyz"], "gain": 3.0}}
    assert main(["evaluate", "--config", str(tmp_path / "a/config.yaml"), "--out", str(tmp_path / "b")]) == 0
    first, second = (json.loads((tmp_path / name / "evaluate.json").read_text()) for name in "ab")
    assert first["config"] == second["config"]
    assert [run["metrics"]["image_auroc"] for run in first["runs"]] == [run["metrics"]["image_auroc"] for run in second["runs"]]
    fits = toy.Toy.fits
    assert main(["evaluate", "--config", str(tmp_path / "a/config.yaml")]) == 0 and toy.Toy.fits == fits  # the same folder: all is there


def test_fit_keeps_its_configuration_too(config, tmp_path):
    fit = ["fit", "toy", "--dataset", "mvtec3d", "--root", yaml.safe_load(config.read_text())["root"], "--category", "nut"]
    assert main([*fit, "--out", str(tmp_path / "a"), "--seed", "3", "--shots", "2"]) == 0
    assert main(["fit", "--config", str(tmp_path / "a/config.yaml"), "--out", str(tmp_path / "b")]) == 0
    first, second = (json.loads((tmp_path / name / "model.json").read_text()) for name in "ab")
    assert first["config"] == second["config"] and first["tensors"]["sha256"] == second["tensors"]["sha256"]


def test_a_section_says_whose_option_it_is():
    options = {"dataset.unit": "0.001", "method.gain": "2"}
    assert split_options("toy", "folder", options) == ({"gain": "2"}, {"unit": "0.001"})
    with pytest.raises(ConfigError, match=r"unknown option 'method.unit' of toy on folder; .*known: dataset.unit, "):
        split_options("toy", "folder", {"method.unit": "1"})
    with pytest.raises(ConfigError, match="use --device"):
        split_options("toy", "folder", {"method.device": "cuda"})


def test_what_was_written_is_parsed_to_the_same_words(tmp_path):
    words = ["fit", "toy", "--dataset", "folder", "--root", "r", "--out", "o", "--category", "a", "--multiclass", "--set", "gain=2"]
    path = write_config(tmp_path / "c.yaml", parse(*words), {"gain": 2})
    assert yaml.safe_load(path.read_text())["seed"] == 0  # said, although it is the default
    assert vars(parse("fit", "--config", path)) == {**vars(parse(*words)), "config": str(path)}
