"""The training loop: what is learned, stops, resumes, and what goes wrong."""

from __future__ import annotations

import errno

import pytest
import torch
from torch import nn

from mm3dad import files
from mm3dad.errors import ConfigError, DataError, ModelError, StorageError, TrainingError
from mm3dad.nets.training import Task, TrainingRun, TrainingSettings, choose_precision, shuffle_batches, split_normals, train

EPOCHS = 4
ALL = TrainingSettings(seed=3, clip=0.5, ema=0.9, patience=3)


class CutOffError(Exception):
    pass


def make_task(width=3, rate=0.05, stop_before=None, epochs=EPOCHS, validate=True, identity=None, noise=0.3):
    """A net with dropout and running statistics that learns a linear map."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, width, generator=generator), torch.randn(40, 2, generator=generator) * noise
    y = y + x[:, :2] * 2
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))

    def batches(epoch, generator):
        if epoch == stop_before:
            raise CutOffError
        return shuffle_batches(30, 7, generator)

    def loss(chosen):
        return {"fit": (net(x[chosen]) - y[chosen]).square().mean(), "small": 1e-3 * net[0].weight.abs().sum()}

    @torch.no_grad()
    def check():
        return float((net(x[30:]) - y[30:]).square().mean())

    parts = {"net": net}
    return Task(
        "toy",
        identity or {"rate": rate},
        parts,
        lambda: torch.optim.AdamW(net.parameters(), rate),
        epochs,
        batches,
        loss,
        check if validate else None,
        lambda step: 1 / (1 + step),
    )


def weights(task):
    return {key: value.clone() for key, value in task.modules["net"].state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_learns_keeps_the_best_and_repeats():
    task = make_task(epochs=30)
    before = weights(task)
    history = train(task, ALL)
    assert not task.modules["net"].training
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert all(row["loss"] == pytest.approx(row["fit"] + row["small"], rel=1e-5) for row in history.rows)
    checks = [history.start, *(row["validation"] for row in history.rows)]
    assert history.best == checks.index(min(checks)) > 0
    assert task.validate() == min(checks)
    assert any(not torch.equal(before[key], value) for key, value in weights(task).items())
    again = make_task(epochs=30)
    assert train(again, ALL) == history
    assert_same(weights(again), weights(task))


def test_the_callers_randomness_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    task = make_task()
    torch.manual_seed(5)
    train(task, ALL)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("settings", [ALL, TrainingSettings()], ids=["all", "plain"])
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_resumes_to_the_same_result_at_every_epoch(tmp_path, settings, validate, epoch):
    whole = make_task(validate=validate)
    history = train(whole, settings)
    run = TrainingRun(tmp_path)
    cut = make_task(stop_before=epoch, validate=validate)
    with pytest.raises(CutOffError):
        train(cut, settings, run)
    resumed = make_task(validate=validate)
    told = []
    assert train(resumed, settings, run, lambda stage, done, total: told.append((done, total))) == history
    assert_same(weights(resumed), weights(whole))
    assert told[0] == (5 * epoch, 5 * EPOCHS)
    finished = make_task(stop_before=0, validate=validate)
    assert train(finished, settings, run) == history
    assert_same(weights(finished), weights(whole))
    assert sorted(path.suffix for path in (tmp_path / "toy").iterdir()) == [".json", ".safetensors"]


def test_a_plain_loop_gives_the_same_weights():
    task, plain = make_task(validate=False), make_task(validate=False)
    rows = []
    batches = task.batches
    task.batches = lambda epoch, generator: rows.append(list(batches(epoch, generator))) or rows[-1]
    for net in (task.modules["net"], plain.modules["net"]):
        net[3].p = 0.0
    train(task, TrainingSettings(clip=0.5))
    net = plain.modules["net"].train()
    optimizer, step = plain.optimizer(), 0
    for chosen in (part for row in rows for part in row):
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + step)
        optimizer.zero_grad()
        sum(plain.loss(chosen).values()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        step += 1
    assert step == 5 * EPOCHS
    for key, value in weights(plain).items():
        torch.testing.assert_close(weights(task)[key], value, rtol=1e-5, atol=1e-6)


def test_average_of_weights_by_hand():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    task = Task("one", {}, {"net": net}, lambda: torch.optim.SGD(net.parameters(), 1.0), 3, lambda *_: [0], lambda _: net.weight.sum())
    train(task, TrainingSettings(ema=0.75))
    average = value = 1.0
    for _ in range(3):
        value -= 1
        average = 0.75 * average + 0.25 * value
    assert float(net.weight.detach()) == pytest.approx(average)


def test_stops_early():
    scores = iter([5.0, 4.0, 6.0, 6.0, 1.0])
    task = make_task(epochs=50)
    task.validate = lambda: next(scores)
    history = train(task, TrainingSettings(patience=2))
    assert history.best == 1 and len(history.rows) == 3 and history.start == 5


def test_no_epoch_better_than_the_untrained_state():
    task = make_task()
    before = weights(task)
    scores = iter([1.0, *[2.0] * EPOCHS])
    task.validate = lambda: next(scores)
    assert train(task, TrainingSettings()).best == 0
    assert_same(weights(task), before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 4}, r"shapes.net.0.weight = \[8, 3\], this one has \[8, 4\]"),
        ({"rate": 0.1}, "rate = 0.05, this one has 0.1"),
        ({"epochs": 9}, "epochs = 4, this one has 9"),
        ({"identity": {"method": "other"}}, r'method = null, this one has "other" \(also: rate\)'),
    ],
)
def test_another_trainings_checkpoint_is_refused(tmp_path, change, named):
    train(make_task(), ALL, TrainingRun(tmp_path))
    with pytest.raises(ModelError, match=named + ".*; go on with the same settings and data, or delete the folder"):
        train(make_task(**change), ALL, TrainingRun(tmp_path))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run = TrainingRun(tmp_path)
    train(make_task(), ALL, run)
    path = next((tmp_path / "toy").glob("*.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match="sha256.*damaged or foreign"):
        train(make_task(), ALL, run)
    path.unlink()
    with pytest.raises(ModelError, match="expected tensors at"):
        train(make_task(), ALL, run)
    for text in ("{", "[]", '{"format": 1}', '{"format": 2, "identity": {}, "values": {}, "tensors": {}, "states": []}'):
        (tmp_path / "toy" / "checkpoint.json").write_text(text)
        with pytest.raises(ModelError, match="delete the folder to train from the start"):
            train(make_task(), ALL, run)


@pytest.mark.parametrize(
    ("rate", "noise", "what"), [(0.05, float("nan"), "loss became nan"), (1e9, 1.0, "mean loss rose|loss became|weights became")]
)
def test_divergence_is_named(rate, noise, what):
    task = make_task(rate=rate, noise=noise, validate=False)
    with pytest.raises(TrainingError, match=f"training toy diverged in epoch 1: .*({what}).*nothing was learned yet; lower the learning"):
        train(task, TrainingSettings())
    assert all(value.isfinite().all() for value in weights(task).values())


def test_divergence_keeps_the_last_good_epoch(tmp_path):
    run = TrainingRun(tmp_path)
    short = make_task(epochs=2, validate=False)
    train(short, TrainingSettings())
    task = make_task(validate=False)
    task.rate = lambda step: 1 / (1 + step) if step < 10 else float("inf")
    with pytest.raises(TrainingError, match="in epoch 3: .*the state after epoch 2 is kept"):
        train(task, TrainingSettings(), run)
    assert_same(weights(task), weights(short))
    kept = files.read_json(tmp_path / "toy" / "checkpoint.json")
    assert kept["values"]["epoch"] == 2


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    run = TrainingRun(tmp_path)
    with pytest.raises(CutOffError):
        train(make_task(stop_before=2), ALL, run)
    before = {path.name: path.read_bytes() for path in (tmp_path / "toy").iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left on device; free some space"):
        patch.setattr("safetensors.torch.save_file", full)
        train(make_task(), ALL, run)
    assert {path.name: path.read_bytes() for path in (tmp_path / "toy").iterdir()} == before
    resumed, whole = make_task(), make_task()
    assert train(resumed, ALL, run) == train(whole, ALL)
    assert_same(weights(resumed), weights(whole))


def test_progress_and_curves():
    told, logged = [], []
    train(make_task(), ALL, TrainingRun(log=lambda *row: logged.append(row)), lambda *row: told.append(row))
    assert [done for _, done, _ in told] == list(range(5 * EPOCHS)) and {total for *_, total in told} == {5 * EPOCHS}
    assert told[0][0] == "training toy" and told[-1][0].startswith("training toy (loss ")
    assert [epoch for _, epoch, _ in logged] == [1, 2, 3, 4]
    assert {"loss", "fit", "small", "validation"} == logged[0][2].keys()


def test_precision_of_a_cpu_is_asked_for(monkeypatch):
    for units in (True, False):
        monkeypatch.setattr("mm3dad.nets.task.has_bfloat16_units", lambda units=units: units)
        assert choose_precision(False, "cpu") is None and choose_precision(True, "cuda") is None
        assert choose_precision(True, "cpu") is (True if units else None)


def test_mixed_precision_on_a_cpu_only_when_asked():
    seen = []
    task = make_task(epochs=1)
    inner = task.loss
    task.loss = lambda batch: seen.append(torch.is_autocast_enabled("cpu")) or inner(batch)
    train(task, TrainingSettings())
    train(task, TrainingSettings(mixed=True))
    assert set(seen[:5]) == {False} and set(seen[5:]) == {True}


def test_an_epoch_without_a_batch():
    task = make_task()
    task.batches = lambda epoch, generator: []
    with pytest.raises(DataError, match="an epoch has no batch; give more training samples"):
        train(task, ALL)


@pytest.mark.parametrize("wrong", [{"clip": -1.0}, {"ema": 1.0}, {"patience": -1}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match="training needs clip >= 0"):
        TrainingSettings(**wrong)


@pytest.mark.parametrize(("count", "held"), [(1, 0), (3, 0), (4, 1), (10, 1), (60, 6)])
def test_split_of_normals(count, held):
    learn, check = split_normals(count, 0.1, seed=1)
    assert len(check) == held and sorted(learn + check) == list(range(count)) and learn == sorted(learn)
    assert split_normals(count, 0.1, seed=1) == (learn, check)
    assert split_normals(count, 0.0) == (list(range(count)), [])


def test_batches_take_everything_once():
    parts = shuffle_batches(10, 4, torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == [4, 4, 2] and torch.cat(parts).sort().values.tolist() == list(range(10))
