"""torchrun's processes train one model together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError
from mm3dad.files import read_tensors
from mm3dad.registry import METHODS
from mm3dad.run._group import PLACE
from mm3dad.run.fit import fit_detector
from tests.run import toy
from tests.run.test_training import Learner

toy.register()
if "learner" not in METHODS.names():
    METHODS.register("learner", Learner)


@pytest.fixture(scope="module")
def two(tree, tmp_path_factory):
    """The same fit by two processes, twice: the folders of the models, and of what each process held."""
    folder = tmp_path_factory.mktemp("two")
    said = []
    for name in ("first", "again"):
        launch = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", "-m", "tests.run.ranks"]
        verb = ["fit", "learner", "--dataset", "mvtec3d", "--root", str(tree), "--category", "nut", "--out", str(folder / name)]
        (folder / f"{name}-kept").mkdir()
        found = subprocess.run(
            [*launch, str(folder / f"{name}-kept"), *verb, "--json", str(folder / f"{name}.json")],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert found.returncode == 0, found.stderr
        said.append(found.stdout)
    return folder, said


def test_all_processes_hold_the_same_weights(two):
    folder, _ = two
    first, second = (read_tensors(folder / "first-kept" / f"state-{rank}.safetensors") for rank in (0, 1))
    assert {"gain", "rgb", "xyz"} <= first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_first_process_writes_and_speaks_alone(two):
    folder, said = two
    assert sorted(path.name for path in (folder / "first-kept").iterdir()) == ["saved-0", "state-0.safetensors", "state-1.safetensors"]
    assert said[0].count("learner fitted on 6 samples of nut") == 1
    about = json.loads((folder / "first/fit.json").read_text())
    assert about == json.loads((folder / "first.json").read_text())[0] and about["processes"] == 2
    assert not (folder / "first" / "training").exists() and not (folder / "first" / ".lock").exists()


def test_a_second_training_gives_the_same_model(two):
    folder, _ = two
    one, other = (mm3dad.load(folder / name).state for name in ("first", "again"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_two_processes_train_on_all_batches(two, tree, tmp_path):
    (alone,) = fit_detector("learner", "mvtec3d", tree, tmp_path / "alone")
    shared = json.loads((two[0] / "first/fit.json").read_text())
    assert alone["processes"] == 1
    # Half as many steps, each on the mean of two batches: the first epoch begins at the same weights, and the model is another.
    assert len(shared["training"]["gain"]["rows"]) == len(alone["training"]["gain"]["rows"])
    assert not torch.equal(mm3dad.load(two[0] / "first").state["gain"], mm3dad.load(tmp_path / "alone").state["gain"])


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ({}, {}, "WORLD_SIZE is 2, but toy takes no gradient steps to share; start it as one process"),
        ({"method": "learner", "workers": 2}, {}, "WORLD_SIZE is 2 and workers are 2; share one training .* or many fits"),
        ({"method": "learner"}, {"RANK": None}, "WORLD_SIZE is 2, but RANK is not set; start the processes with torchrun"),
        ({"method": "learner"}, {"WORLD_SIZE": "two"}, "WORLD_SIZE must be the number of processes, got 'two'"),
    ],
)
def test_what_processes_cannot_share_is_said(tree, tmp_path, monkeypatch, arguments, environment, message):
    for name in PLACE:
        monkeypatch.setenv(name, "2" if name == "WORLD_SIZE" else "0")
    for name, value in environment.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        fit_detector(arguments.get("method", "toy"), "mvtec3d", tree, tmp_path / "out", workers=arguments.get("workers", 1))
    assert not (tmp_path / "out").exists()


def test_the_package_runs_as_a_module():
    found = subprocess.run([sys.executable, "-m", "mm3dad", "--version"], capture_output=True, text=True)
    assert found.stdout.strip() == f"mm3dad {mm3dad.__version__}"
