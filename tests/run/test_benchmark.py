from __future__ import annotations

import json

import pytest

from mm3dad.cli import main
from mm3dad.errors import ConfigError, DataError
from mm3dad.run.benchmark import benchmark_model
from mm3dad.run.fit import fit_detector
from tests.run import toy

toy.register()


def test_figures_of_given_samples(tree, model):
    result = benchmark_model(model, [tree / "nut/test/good"], repeats=7)
    assert result["samples"] == 3 and result["size"] == [32, 32] and result["repeats"] == 7
    for name in ("read_ms", "predict_ms", "total_ms"):
        assert 0 < result[name]["p50"] <= result[name]["p95"] <= result[name]["p99"]
    assert result["bank_bytes"] == 4 * 7 * 32 * 32 < result["model_bytes"] and result["peak_rss_bytes"] > 50e6
    assert result["method"] == "toy" and result["versions"]["torch"]


def test_synthetic_samples_by_default(tmp_path):
    from mm3dad.data.synthetic import write_dataset

    tree = write_dataset(tmp_path / "s", ["gasket"], size=64, counts={"train": 2, "validation": 1, "good": 1, "defect": 1}, workers=1)
    fit_detector("toy", "synthetic", tree, tmp_path / "m")
    result = benchmark_model(tmp_path / "m", repeats=2, size=64)
    assert result["inputs"] == "synthetic" and result["samples"] == 4 and result["size"] == [64, 64]


def test_the_verb_prints_a_table(tree, model, tmp_path, capsys):
    assert main(["benchmark", str(model), str(tree / "nut/test/good"), "--repeats", "3", "--json", str(tmp_path / "b.json")]) == 0
    text = capsys.readouterr().out
    assert all(words in text for words in ("p50", "p95", "p99", "predict", "peak memory, MB", "3 predictions"))
    assert json.loads((tmp_path / "b.json").read_text())["repeats"] == 3


def test_bad_input(tree, model, tmp_path):
    with pytest.raises(ConfigError, match="repeats must be at least 1"):
        benchmark_model(model, repeats=0)
    with pytest.raises(DataError, match="found nothing"):
        benchmark_model(model, [tmp_path / "missing"])
