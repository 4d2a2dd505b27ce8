"""Options as text, and model folders that are whole, damaged, foreign or cut short."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Literal

import pytest
import torch

import mm3dad
from mm3dad import files
from mm3dad.errors import ConfigError, ModelError, StorageError
from mm3dad.methods import Detector, load_detector
from mm3dad.methods._detector import resolve_config
from mm3dad.methods.duet import Config, Duet
from tests.methods.parts import SMALL, make_sample, make_samples


@dataclass(frozen=True)
class Options:
    count: int = 3
    share: float = 0.5
    flag: bool = False
    name: str = "plain"
    layers: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    window: int | None = None
    rule: Literal["sum", "max"] = "sum"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"count": "7"}, {"count": 7}),
        ({"count": 7.0}, {"count": 7}),
        ({"count": "-2"}, {"count": -2}),
        ({"share": "1e-3"}, {"share": 1e-3}),
        ({"share": 2}, {"share": 2.0}),
        ({"flag": "true"}, {"flag": True}),
        ({"flag": "No"}, {"flag": False}),
        ({"flag": "1"}, {"flag": True}),
        ({"flag": "off"}, {"flag": False}),
        ({"flag": True}, {"flag": True}),
        ({"name": "3"}, {"name": "3"}),
        ({"layers": "2,3"}, {"layers": (2, 3)}),
        ({"layers": " -1 , 4 "}, {"layers": (-1, 4)}),
        ({"layers": [2, 3]}, {"layers": (2, 3)}),
        ({"layers": 5}, {"layers": (5,)}),
        ({"layers": ""}, {"layers": ()}),
        ({"names": "rgb"}, {"names": ("rgb",)}),
        ({"names": "rgb, xyz"}, {"names": ("rgb", "xyz")}),
        ({"names": ["rgb", "xyz"]}, {"names": ("rgb", "xyz")}),
        ({"window": "none"}, {"window": None}),
        ({"window": "None"}, {"window": None}),
        ({"window": None}, {"window": None}),
        ({"window": "4"}, {"window": 4}),
        ({"rule": "max"}, {"rule": "max"}),
        ({}, {}),
    ],
)
def test_options_take_the_type_of_their_field(given, wanted):
    resolved = resolve_config(Options, given)
    assert resolved == Options(**wanted)
    for name in wanted:
        assert type(getattr(resolved, name)) is type(wanted[name])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": "many"}, "option count must be a whole number, got 'many'"),
        ({"count": "2.5"}, "option count must be a whole number, got '2.5'"),
        ({"count": True}, "option count must be a whole number, got True"),
        ({"count": None}, "option count must be a whole number, got None"),
        ({"count": float("inf")}, "option count must be a whole number, got inf"),
        ({"count": float("nan")}, "option count must be a whole number, got nan"),
        ({"share": "half"}, "option share must be a number, got 'half'"),
        ({"share": [0.5]}, "option share must be a number"),
        ({"flag": "maybe"}, "option flag must be true or false, got 'maybe'"),
        ({"flag": 2}, "option flag must be true or false, got 2"),
        ({"name": 3}, "option name must be text, got 3"),
        ({"layers": "2,x"}, "option layers must be a whole number, got 'x'"),
        ({"layers": None}, "option layers must be a whole number, got None"),
        ({"names": [3]}, "option names must be text, got 3"),
        ({"window": "wide"}, "option window must be a whole number, got 'wide'"),
        ({"rule": "mean"}, "option rule must be one of sum, max, got 'mean'"),
        ({"cuont": 3}, "unknown option 'cuont'; did you mean 'count'"),
    ],
)
def test_options_of_the_wrong_kind(given, message):
    with pytest.raises(ConfigError, match=message):
        resolve_config(Options, given)


def test_a_configuration_survives_json():
    config = Config(layers=(2, 3), global_bank=True, window=4, modalities=("rgb",))
    assert resolve_config(Config, json.loads(json.dumps(config.__dict__))) == config


# ---- model folders


@pytest.fixture(scope="module")
def fitted():
    return mm3dad.create("duet", **SMALL, modalities="xyz").fit(make_samples(3))


@pytest.fixture
def model(fitted, tmp_path):
    return fitted.save(tmp_path / "model")


def edit(model, change):
    text = json.loads((model / "model.json").read_text())
    change(text)
    (model / "model.json").write_text(json.dumps(text))


def get_tensors(model):
    (path,) = model.glob("tensors-*.safetensors")
    return path


def test_the_folder_says_what_it_is(model, fitted):
    text = json.loads((model / "model.json").read_text())
    assert text["method"] == "duet" and text["format"] == 1 and text["config"]["centers"] == 32
    assert text["tensors"]["sha256"] == files.sha256_file(get_tensors(model))
    assert sorted(path.name for path in model.iterdir()) == ["model.json", get_tensors(model).name]
    assert Duet.load(model).predict(make_sample(9)).score == fitted.predict(make_sample(9)).score


def test_a_model_may_move(model, fitted, tmp_path):
    moved = model.rename(tmp_path / "elsewhere")
    assert load_detector(str(moved)).predict(make_sample(9)).score == fitted.predict(make_sample(9)).score


def test_a_newer_model_takes_the_place_of_the_older(model):
    newer = mm3dad.create("duet", **SMALL, modalities="xyz", neighbors=2).fit(make_samples(2, first=5))
    old = get_tensors(model)
    newer.save(model)
    assert not old.exists() and get_tensors(model) != old
    assert mm3dad.load(model).config.neighbors == 2
    newer.save(model)  # the same model again
    assert mm3dad.load(model).predict(make_sample(9)).score == newer.predict(make_sample(9)).score


def test_missing_parts(model, tmp_path):
    with pytest.raises(ModelError, match="expected a saved model .* found none; make one with `mm3dad fit`"):
        mm3dad.load(tmp_path / "nowhere")
    get_tensors(model).unlink()
    with pytest.raises(ModelError, match="expected tensors at .* found none; fit and save the model again"):
        mm3dad.load(model)


def test_a_flipped_byte_anywhere_in_the_tensors(model):
    path = get_tensors(model)
    whole = path.read_bytes()
    for place in (3, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="the file is damaged or foreign, save it again"):
            mm3dad.load(model)
    path.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="the file is damaged or foreign"):
        mm3dad.load(model)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"format": 1}', "\x00\x01"])
def test_a_damaged_description(model, text):
    (model / "model.json").write_text(text)
    with pytest.raises(ModelError, match="model.json is damaged or foreign .*; fit and save the model again"):
        mm3dad.load(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.update(format=2), "has format 2, this version reads up to 1; update mm3dad, or fit again"),
        (lambda text: text.update(format="two"), "has format two, this version reads up to 1"),
        (lambda text: text.update(method="duett"), "unknown method 'duett'; did you mean 'duet'"),
        (lambda text: text["config"].update(turbo=1), "a configuration this version does not know .*'turbo'"),
        (lambda text: text["config"].update(centers=0), "a configuration this version does not know .*centers"),
        (lambda text: text.update(config=[1]), "a configuration this version does not know"),
        (lambda text: text.update(values={}), "lacks a part of a duet model .*thresholds|parts"),
        (lambda text: text.update(values=[]), "lacks a part of a duet model"),
        (lambda text: text["values"].update(thresholds=[0.1]), "lacks a part of a duet model"),
        (lambda text: text["values"]["parts"]["xyz"].pop("unit"), "lacks a part of a duet model"),
        (lambda text: text["values"]["parts"]["xyz"].update(unit="wide"), "a calibration must hold"),
        (lambda text: text["values"]["parts"]["xyz"]["bank"].update(ids=["a"]), "parts of the bank do not fit together"),
        (lambda text: text["values"]["parts"]["xyz"].update(unit={"location": 0}), "a calibration must hold"),
        (lambda text: text["values"]["parts"].update(rgb=text["values"]["parts"]["xyz"]), "the bank lacks 'rgb.rows'"),
        (lambda text: text.update(tensors="x"), "damaged or foreign"),
    ],
)
def test_a_changed_description(model, change, message):
    edit(model, change)
    with pytest.raises(ModelError, match=message):
        mm3dad.load(model)


def test_tensors_of_another_folder_are_not_reached(model, tmp_path):
    """The file's name is taken, never a path."""
    get_tensors(model).rename(tmp_path / get_tensors(model).name)
    edit(model, lambda text: text["tensors"].update(file=f"../{text['tensors']['file']}"))
    with pytest.raises(ModelError, match="found none"):
        mm3dad.load(model)


def test_a_model_of_another_class(model):
    class Other(Duet):
        name = "other"

    with pytest.raises(ModelError, match=r"holds a 'duet' model, expected 'other'; use mm3dad.load"):
        Other.load(model)
    assert isinstance(Detector.load(model), Duet)


@pytest.mark.parametrize("failing", ["write_tensors", "write_json"])
def test_a_full_disk_leaves_the_old_model(model, fitted, monkeypatch, failing):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    newer = mm3dad.create("duet", **SMALL, modalities="xyz", neighbors=2).fit(make_samples(2, first=5))

    def fail(*args, **kwargs):
        raise StorageError("cannot write: No space left on device; free some space")

    with monkeypatch.context() as patch:
        patch.setattr(files, failing, fail)
        with pytest.raises(StorageError, match="No space left"):
            newer.save(model)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert mm3dad.load(model).predict(make_sample(9)).score == fitted.predict(make_sample(9)).score


def test_a_disk_that_fills_up_while_writing(model, fitted, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    before = sorted(path.name for path in model.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="cannot write .*No space left on device; free some space"):
            fitted.save(model)
    assert sorted(path.name for path in model.iterdir()) == before
    assert mm3dad.load(model).is_fitted


def test_a_file_where_the_folder_should_be(fitted, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StorageError, match="cannot write"):
        fitted.save(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_loading_restores_tensors_exactly(model, fitted):
    tensors, values = fitted._state()
    again, again_values = mm3dad.load(model)._state()
    assert tensors.keys() == again.keys() and all(torch.equal(tensors[key], again[key]) for key in tensors)
    assert again_values == values
