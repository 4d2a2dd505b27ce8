"""Fitting a method that trains: checkpoints, resume, curves."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from torch import nn

import mm3dad
from mm3dad.errors import MissingPackageError, ModelError
from mm3dad.methods import Needs
from mm3dad.nets.training import Task, TrainingSettings, train
from mm3dad.registry import METHODS
from mm3dad.run.evaluate import evaluate
from mm3dad.run.fit import fit_detector
from tests.run import toy

EPOCHS = 3


class CutOffError(Exception):
    pass


class Learner(toy.Toy):
    """The toy, with a gain that it learns."""

    name = "learner"
    needs = Needs(inputs=("rgb", "xyz"), settings=("one-class", "few-shot"), trains=True)
    stop_before: int | None = None
    epochs_run = 0

    def fit(self, samples, progress=None, validation=None):
        net = nn.Linear(1, 1)
        nn.init.constant_(net.weight, self.config.gain)
        nn.init.zeros_(net.bias)

        def batches(epoch, generator):
            if epoch == self.stop_before:
                raise CutOffError
            type(self).epochs_run += 1
            return torch.rand(4, 2, 1, generator=generator)

        def loss(batch):
            return (net(batch) - 3 * batch).square().mean()

        task = Task("gain", {}, {"net": net}, lambda: torch.optim.Adam(net.parameters(), 0.1), EPOCHS, batches, loss)
        train(task, TrainingSettings(self.config.seed), self.training, progress)
        super().fit(samples, None, validation)
        self.state["gain"] = net.weight.detach()
        return self


@pytest.fixture
def tree(tmp_path):
    if "learner" not in METHODS.names():
        METHODS.register("learner", Learner)
    Learner.stop_before, Learner.epochs_run = None, 0
    return toy.write_tree(tmp_path / "data", ["nut"])


def fit(tree, out, **options):
    return fit_detector("learner", "mvtec3d", tree, out, **options)


def test_an_interrupted_fit_goes_on_to_the_same_model(tree, tmp_path):
    (whole,) = fit(tree, tmp_path / "whole")
    assert whole["training"]["gain"]["best"] == EPOCHS and len(whole["training"]["gain"]["rows"]) == EPOCHS
    Learner.stop_before = 2
    with pytest.raises(CutOffError):
        fit(tree, tmp_path / "cut")
    assert (tmp_path / "cut" / "training" / "gain" / "checkpoint.json").is_file()
    Learner.stop_before, Learner.epochs_run = None, 0
    (row,) = fit(tree, tmp_path / "cut")
    assert Learner.epochs_run == 1 and row["training"] == whole["training"]
    assert json.loads((tmp_path / "cut" / "fit.json").read_text())["training"] == row["training"]
    one, other = (mm3dad.load(tmp_path / name).state for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not (tmp_path / "cut" / "training").exists()
    fit(tree, tmp_path / "cut", options={"gain": "2"})  # a finished model may be replaced


def test_a_checkpoint_of_other_settings_or_data_is_refused(tree, tmp_path):
    Learner.stop_before = 1
    with pytest.raises(CutOffError):
        fit(tree, tmp_path / "model")
    Learner.stop_before = None
    with pytest.raises(ModelError, match=r"config.gain = 1.0, this one has 2.0.*delete the folder"):
        fit(tree, tmp_path / "model", options={"gain": "2"})
    with pytest.raises(ModelError, match="samples = "):
        fit(tree, tmp_path / "model", shots=3)
    (tree / "nut" / "train" / "good" / "rgb" / "000.png").touch()
    with pytest.raises(ModelError, match="data_sha256 = "):
        fit(tree, tmp_path / "model")


def test_an_interrupted_evaluation_goes_on_training(tree, tmp_path):
    Learner.stop_before = 2
    with pytest.raises(CutOffError):
        evaluate("learner", "mvtec3d", tree, out=tmp_path / "out", eval_size=16)
    Learner.stop_before, Learner.epochs_run = None, 0
    result = evaluate("learner", "mvtec3d", tree, out=tmp_path / "out", eval_size=16)
    assert Learner.epochs_run == 1 and result["complete"]
    assert not list((tmp_path / "out").rglob("checkpoint*"))


def test_curves_need_tensorboard(tree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mm3dad\[tensorboard\]'"):
        fit(tree, tmp_path / "model", tensorboard=True)
    assert not (tmp_path / "model").exists()


def test_curves_are_written(tree, tmp_path, monkeypatch):
    told = []

    class Writer:
        def __init__(self, folder):
            told.append(folder)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            told.append("closed")

        def add_scalar(self, name, value, epoch):
            told.append((name, epoch))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    fit(tree, tmp_path / "model", tensorboard=True)
    assert told == [str(tmp_path / "model" / "tensorboard"), ("gain/loss", 1), ("gain/loss", 2), ("gain/loss", 3), "closed"]
