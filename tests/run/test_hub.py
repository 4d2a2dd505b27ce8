"""Push and pull against a hub on this machine, over HTTP, by huggingface_hub's own client."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from huggingface_hub import close_session, constants

import mm3dad
from mm3dad.cli import main
from mm3dad.errors import ConfigError, ModelError, StorageError
from mm3dad.run.calibrate import calibrate_model
from mm3dad.run.fit import fit_detector
from mm3dad.run.hub import pull_model, push_model
from tests.run import toy
from tests.run.hub_server import READER, TOKEN, FakeHub

toy.register()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)  # HF_ENDPOINT is read once, when the client is imported
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def test_a_model_comes_back_as_it_went(hub, model, tree, tmp_path):
    pushed = push_model(model, "acme/nut")
    assert hub.private["acme/nut"] and set(hub.repos["acme/nut"][0]) == {"README.md", "fit.json", "model.json", *_tensors(model)}
    pulled = pull_model("acme/nut", tmp_path / "pulled")
    assert pulled["revision"] == pushed["revision"] and pulled["method"] == "toy"
    assert {path.name for path in (tmp_path / "pulled").iterdir()} == {"fit.json", "model.json", *_tensors(model)}
    (sample, *_) = mm3dad.open_dataset("mvtec3d", tree, "nut", "test")
    mine, theirs, third = (mm3dad.load(place).predict(sample) for place in (model, tmp_path / "pulled", "hub:acme/nut"))
    assert mine.score == theirs.score == third.score and torch.equal(mine.map, theirs.map)
    assert hub.fetched.count("model.json") == 1  # the second fetch is the cache's
    assert "README.md" not in hub.fetched


def _tensors(folder):
    return [path.name for path in folder.glob("tensors-*.safetensors")]


def test_a_second_push_replaces_and_an_older_revision_stays(hub, model, tree, tmp_path):
    first = push_model(model, "acme/nut", public=True)
    assert not hub.private["acme/nut"]
    fit_detector("toy", "mvtec3d", tree, tmp_path / "other", seed=1, options={"gain": "2"})
    push_model(tmp_path / "other", "acme/nut")
    assert [name for name in hub.repos["acme/nut"][1] if "tensors" in name] == _tensors(tmp_path / "other")
    pull_model("acme/nut", tmp_path / "pulled")
    assert mm3dad.load(tmp_path / "pulled").config.gain == 2
    pull_model(f"acme/nut@{first['revision']}", tmp_path / "pulled")
    assert mm3dad.load(tmp_path / "pulled").config.gain == 1 and _tensors(tmp_path / "pulled") == _tensors(model)
    with pytest.raises(ConfigError, match="acme/nut has no such revision; leave @REVISION out"):
        pull_model("acme/nut@v9", tmp_path / "pulled")


def test_the_card_says_what_the_model_is_and_no_path_of_this_machine(hub, tree, tmp_path):
    fit_detector("toy", "mvtec3d", tree, tmp_path / "model", shots=4, seed=3, options={"gain": "2"})
    calibrate_model(tmp_path / "model", "mvtec3d", tree, categories=["nut"], split="test", false_alarms=0.3)
    push_model(tmp_path / "model", "acme/nut", licence="mit")
    kept = hub.repos["acme/nut"][0]
    card = kept["README.md"].decode()
    _, header, text = card.split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["license"] == "mit" and {"toy", "rgb", "xyz", "anomaly-detection", "mvtec3d"} <= set(fields["tags"])
    command = "mm3dad fit toy --dataset mvtec3d --root data --category nut --shots 4 --seed 3 --out model --set gain=2.0"
    for part in (
        "mm3dad pull acme/nut",
        'mm3dad.load("hub:acme/nut")',
        "4 samples of nut",
        "25.0% false alarms",
        "| gain | 2.0 |",
        "torch",
    ):
        assert part in text
    assert command.replace("--root data", f"--root {tree.name}") in text
    assert all(str(tmp_path).encode() not in body and str(tree.parent).encode() not in body for body in kept.values())


def test_a_foreign_or_spoilt_repository_is_not_taken(hub, model, tmp_path):
    push_model(model, "acme/nut")
    hub.repos["acme/code"] = [{"pytorch_model.bin": b"pickle", "setup.py": b"evil"}]
    hub.private["acme/code"] = False
    with pytest.raises(ModelError, match="acme/code on the hub holds no saved model"):
        pull_model("acme/code", tmp_path / "out")
    (name,) = _tensors(model)
    spoilt = hub.repos["acme/nut"][0]
    hub.repos["acme/spoilt"] = [{**spoilt, name: spoilt[name][:-1] + b"x", "run.py": b"evil"}]
    hub.private["acme/spoilt"] = False
    with pytest.raises(ModelError, match="expected .*the file is damaged or foreign"):
        pull_model("acme/spoilt", tmp_path / "out")
    outside = json.loads(spoilt["model.json"])
    outside["tensors"]["file"] = f"../../{name}"
    hub.repos["acme/outside"] = [{**spoilt, "model.json": json.dumps(outside).encode()}]
    hub.private["acme/outside"] = False
    pull_model("acme/outside", tmp_path / "deep/er/out")
    assert {path.name for path in tmp_path.rglob(name)} == {name} and not (tmp_path / name).exists()
    assert not (tmp_path / "out").exists() and not {"pytorch_model.bin", "setup.py", "run.py"} & set(hub.fetched)


def test_who_may_not_gets_one_line(hub, model, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="the hub has no acme/none, or hides it from you"):
        pull_model("acme/none", tmp_path / "out")
    for name in ("nut", "a/b/c", "/nut", ""):
        with pytest.raises(ConfigError, match="OWNER/NAME"):
            pull_model(name, tmp_path / "out")
    with pytest.raises(ConfigError, match="is no name of a repository"):
        pull_model("acme/nut..er", tmp_path / "out")
    with pytest.raises(ModelError, match="expected a saved model"):
        push_model(tmp_path, "acme/nut")
    with pytest.raises(ConfigError, match="leave it out"):
        push_model(model, "acme/nut@v1")
    push_model(model, "acme/nut")
    with pytest.raises(ConfigError, match="does not take the model card of acme/nut .*--licence"):
        push_model(model, "acme/nut", licence="my own")
    monkeypatch.setenv("HF_TOKEN", READER)
    pull_model("acme/nut", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"refuses acme/nut with this token \(403\)"):
        push_model(model, "acme/nut")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="no token of the hub.*hf auth login"):
        push_model(model, "acme/nut")


def test_a_hub_that_is_down(hub, model, tmp_path):
    push_model(model, "acme/nut")
    pull_model("acme/nut", tmp_path / "out")
    hub.close()
    close_session()  # kept connections outlive the server
    pull_model("acme/nut", tmp_path / "again")  # from the cache
    with pytest.raises(StorageError, match="the hub cannot be reached for acme/other"):
        pull_model("acme/other", tmp_path / "out")
    with pytest.raises(StorageError, match="cannot be reached"):
        push_model(model, "acme/nut")


def test_the_verbs(hub, model, tmp_path, capsys):
    assert main(["push", str(model), "acme/nut", "--json", str(tmp_path / "push.json")]) == 0
    assert f"{hub.url}/acme/nut: README.md, fit.json, model.json" in capsys.readouterr().out
    assert main(["pull", "acme/nut", str(tmp_path / "out")]) == 0
    assert "toy from acme/nut (revision" in capsys.readouterr().out
    assert json.loads((tmp_path / "push.json").read_text())["local_paths"] == []
    assert main(["pull", "acme/none", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
