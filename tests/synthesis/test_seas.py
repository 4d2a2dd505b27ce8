from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, ModelError, TrainingError
from mm3dad.nets.task import TrainingRun
from mm3dad.synthesis import seas as module
from mm3dad.synthesis._labelled import LabelledPictures
from mm3dad.synthesis.seas import Seas, SeasConfig
from tests.methods.parts import make_sample

pytest.importorskip("diffusers")
SMALL = {"weights": "tiny", "steps": 1, "mask_steps": 1, "batch": 1, "sampling": 3, "threshold": 0.01}


def make_defect(seed, kind):
    sample = make_sample(seed, size=(40, 48))
    mask = torch.zeros(40, 48, dtype=torch.bool)
    mask[10:20, 12:22] = True
    rgb = torch.where(mask, torch.tensor([1.0, 0.0, 0.0])[:, None, None], sample.rgb)
    return replace(sample, rgb=rgb, mask=mask, label=1, meta=replace(sample.meta, defect=kind))


DEFECTS = [make_defect(number, kind) for number, kind in enumerate(("hole", "crack", "hole"))]
NORMALS = [make_sample(10 + number, size=(40, 48)) for number in range(2)]


def fit(run=None, report=None, defects=DEFECTS, normals=NORMALS, **change):
    made = Seas(SeasConfig(**SMALL | change))
    made.fit(defects, normals, run, report)
    return made


def state(made):
    net = made._require_fit()
    modules = (net.model.unet, net.words, net.masks)
    return [value for part in modules for value in part.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True))


def draw(made, seed=0):
    return made.make(NORMALS[0], torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def made():
    return fit()


def test_it_makes_a_picture_with_a_mask_and_no_points(made):
    found = draw(made)
    assert made.kinds == ["crack", "hole"]
    assert found.rgb.shape == (3, 40, 48) and found.mask.shape == (40, 48) and bool(found.mask.any())
    assert found.xyz is None and found.label == 1 and found.meta.defect == "seas" and found.meta.id == NORMALS[0].meta.id
    again, other = draw(made), draw(made, 1)
    assert torch.equal(found.rgb, again.rgb) and torch.equal(found.mask, again.mask) and not torch.equal(found.rgb, other.rgb)


def test_it_learns_what_is_its_own_and_says_that_it_is_random(made):
    untouched = module.open_diffusion("tiny")
    assert all(torch.equal(a, b) for a, b in zip(untouched.text.parameters(), made._require_fit().model.text.parameters(), strict=True))
    assert not torch.equal(untouched.unet.conv_in.weight, made._require_fit().model.unet.conv_in.weight)
    assert made.describe()["note"].startswith("random weights") and made.describe()["source"] == "random, seed 0"


def test_save_and_load(made, tmp_path):
    made.save(tmp_path, {"data": "x"})
    found = Seas.load(tmp_path)
    assert same(made, found) and found.kinds == made.kinds and found.config == made.config and Seas.identify(tmp_path) == {"data": "x"}
    assert torch.equal(draw(made).rgb, draw(found).rgb)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    with pytest.raises(ModelError, match="expected a model of seas at .*, found none"):
        Seas.load(tmp_path / "none")
    content = json.loads((tmp_path / "seas.json").read_text())
    for change, said in (({"synthesizer": "other"}, "no model of seas"), ({"kinds": ["crack"]}, "damaged or foreign")):
        (tmp_path / "seas.json").write_text(json.dumps(content | change))
        with pytest.raises(ModelError, match=said):
            Seas.load(tmp_path)
    (tmp_path / "seas.json").write_text("{")
    with pytest.raises(ModelError, match="is damaged"):
        Seas.load(tmp_path)


@pytest.mark.parametrize("stage", ["words", "masks"])
def test_an_interrupted_training_ends_as_a_whole_one(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EPOCH", 1)

    def stop(what, done, total):
        if what.startswith(f"training {stage}") and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(TrainingRun(tmp_path, {}), stop)
    seen = []
    again = fit(TrainingRun(tmp_path, {}), lambda what, done, total: seen.append((what.split(" (")[0], done, total)))
    before = [("training words", 1, 2), ("training masks", 0, 2)] if stage == "words" else []
    assert seen == [*before, ("training masks", 1, 2)]
    assert same(again, fit())


def test_a_training_that_diverges_is_stopped():
    with pytest.raises(TrainingError, match="training words diverged.*lower the learning rate"):
        fit(rate=1e30)


def test_bad_input(made):
    bare = replace(DEFECTS[0], mask=None)
    cases = [
        ({"defects": []}, "got 0 and 2; give a category whose test split has defects with masks"),
        ({"normals": []}, "got 3 and 0"),
        ({"defects": [bare]}, "has no mask"),
        ({"defects": [replace(bare, mask=torch.zeros(40, 48, dtype=torch.bool))]}, "has an empty mask"),
        ({"normals": [replace(NORMALS[0], rgb=None)]}, "seas needs rgb, which sample"),
    ]
    for change, said in cases:
        with pytest.raises(DataError, match=said):
            fit(**change)
    with pytest.raises(DataError, match="learned none yet; call fit or load"):
        draw(Seas(SeasConfig(**SMALL)))
    for wrong in ({"steps": 0}, {"sampling": 2}, {"rate": 0.0}, {"rate": float("nan")}, {"threshold": 1.0}, {"guidance": -1.0}):
        with pytest.raises(ConfigError, match="seas needs steps"):
            SeasConfig(**wrong)


def test_a_picture_without_a_defect_is_an_error(made, monkeypatch):
    net = made._require_fit()
    monkeypatch.setattr(net, "draw", lambda normal, *_: (normal, torch.zeros(normal.shape[1:])))
    with pytest.raises(DataError, match=r"finds no defect of type '(crack|hole)' in 5 pictures; train longer or lower threshold"):
        draw(made)


def test_one_defect_and_one_normal_sample_are_enough():
    assert fit(defects=DEFECTS[:1], normals=NORMALS[:1]).kinds == ["hole"]


def test_a_picture_turns_with_its_mask_and_small_defects_stay():
    speck = replace(DEFECTS[0], mask=torch.zeros(40, 48, dtype=torch.bool))
    speck.mask[3, 5] = True
    data = LabelledPictures([speck, DEFECTS[1]], NORMALS, [0, 1], 16)
    assert float(data.masks[0].sum()) >= 1
    data.pictures[:2] = data.masks[:, None]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        numbers, turns, steps = data.draw(generator, 2, True, 1000)
        assert bool((numbers[:2] < 2).all()) and bool((numbers[2:] >= 2).all()) and steps.shape == (4,) and int(steps.max()) < 1000
        pictures, masks, kinds = data.take(numbers, turns, "cpu")
        assert torch.equal(pictures[:2, 0], masks) and kinds == numbers[:2].tolist()
    assert not bool(data.draw(generator, 8, False, 10)[1].any())
