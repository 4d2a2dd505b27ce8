"""Fitting a method that trains: checkpoints, resume, curves."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from torch import nn

import mm3dad
from mm3dad.errors import ConfigError, MissingPackageError, ModelError, StorageError
from mm3dad.methods import Needs
from mm3dad.nets.training import Task, TrainingSettings, train
from mm3dad.registry import METHODS
from mm3dad.run.evaluate import evaluate
from mm3dad.run.fit import fit_detector
from mm3dad.run.track import TRACKERS
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


@pytest.mark.parametrize("tracker", TRACKERS)
def test_curves_need_their_library(tree, tmp_path, monkeypatch, tracker):
    monkeypatch.setitem(sys.modules, TRACKERS[tracker][0], None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'mm3dad\[{tracker}\]'"):
        fit(tree, tmp_path / "model", tracker=tracker)
    with pytest.raises(ConfigError, match="unknown tracker 'mlfow'; did you mean 'mlflow'"):
        fit(tree, tmp_path / "model", tracker="mlfow")
    assert not (tmp_path / "model").exists()


def test_tensorboard_gets_curves(tree, tmp_path, monkeypatch):
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
    fit(tree, tmp_path / "model", tracker="tensorboard")
    assert told == [str(tmp_path / "model" / "tensorboard"), ("gain/loss", 1), ("gain/loss", 2), ("gain/loss", 3), "closed"]


class RefusedError(Exception):
    """What both libraries raise in the tests below; they stand in for the real ones, which the extras bring."""


def fake_wandb(told, refuses=False):
    def init(**given):
        if refuses:
            raise RefusedError("No API key\nconfigured.")
        told.append((given["project"], given["name"], given["config"]["gain"], given["config"]["samples"]))
        return types.SimpleNamespace(
            define_metric=lambda name, step_metric: told.append((name, step_metric)),
            log=lambda values: told.append(sorted(values)),
            finish=lambda exit_code: told.append(exit_code),
        )

    return types.SimpleNamespace(init=init, Settings=lambda **_: None, Error=RefusedError)


def test_wandb_gets_curves_and_says_how_a_run_ended(tree, tmp_path, monkeypatch):
    told = []
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(told))
    fit(tree, tmp_path / "model", tracker="wandb")
    epoch = ["gain/epoch", "gain/loss"]
    assert told == [("mm3dad", "learner model", "1.0", 6), ("gain/*", "gain/epoch"), epoch, epoch, epoch, 0]
    Learner.stop_before = 2
    with pytest.raises(CutOffError):
        fit(tree, tmp_path / "cut", tracker="wandb")
    assert told[-1] == 1
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(told, refuses=True))
    with pytest.raises(ConfigError, match=r"\(No API key configured.\); run `wandb login`, or set WANDB_MODE=offline"):
        fit(tree, tmp_path / "other", tracker="wandb")


def fake_mlflow(told, address):
    class Client:
        def __init__(self, tracking_uri):
            assert tracking_uri == address

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return name

        def create_run(self, experiment, run_name):
            if "down" in address:
                raise RefusedError("no route\nto host")
            told.append((experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="7"))

        def log_param(self, run, key, value):
            told.append((key, value))

        def log_metric(self, run, key, value, step):
            told.append((run, key, step))

        def set_terminated(self, run, status):
            told.append(status)

    return types.SimpleNamespace(MlflowClient=Client, MlflowException=RefusedError)


def test_mlflow_gets_curves_and_says_how_a_run_ended(tree, tmp_path, monkeypatch):
    told = []
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for address in ("http://server", "http://down"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow(told, address))
        if "down" in address:
            with pytest.raises(StorageError, match=r"MLflow at http://down takes no curves \(no route to host\)"):
                fit(tree, tmp_path / "other", tracker="mlflow")
        else:
            fit(tree, tmp_path / "model", tracker="mlflow")
    assert told[0] == ("mm3dad", "learner model") and {("gain", "1.0"), ("samples", 6)} <= set(told[1:8])
    assert told[-4:] == [("7", "gain/loss", 1), ("7", "gain/loss", 2), ("7", "gain/loss", 3), "FINISHED"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI, which is not set"):
        fit(tree, tmp_path / "other", tracker="mlflow")
