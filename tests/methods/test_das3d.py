from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, ModelError, TrainingError
from mm3dad.types import Sample
from tests.methods.parts import make_cloud, make_sample, make_samples

SMALL = {"side": 32, "width": 4, "levels": 2, "epochs": 1, "batch": 2}


def create(**options):
    return mm3dad.create("das3d", **SMALL | options)


@pytest.fixture(scope="module")
def fitted():
    return create().fit(make_samples(5))


def test_draws_are_turned_and_altered_where_the_mask_says():
    detector = create(side=48, levels=1)
    detector._scale = 100.0
    view = detector._view(make_sample(1))
    generator = torch.Generator().manual_seed(0)
    turns = set()
    for _ in range(40):
        rgb, altered, depth, moved, mask = detector._draw(view, [view], generator)
        assert float((rgb - altered).abs().amax(0)[~mask].max()) <= 0.02 and float((depth - moved).abs()[~mask].max()) <= 0.005
        turned = [torch.equal(rgb, torch.rot90(view.rgb, turn, (-2, -1))) for turn in range(4)]
        assert sum(turned) == 1 and torch.equal(depth, torch.rot90(detector._to_depth(view.height), turned.index(True), (-2, -1)))
        turns.add(turned.index(True))
    assert turns == {0, 1, 2, 3}


def clip(sample, rows=slice(12, 52), columns=slice(16, 44)):
    """Leave a piece of the plate, on no table."""
    xyz = torch.zeros_like(sample.xyz)
    xyz[:, rows, columns] = sample.xyz[:, rows, columns]
    return replace(sample, xyz=xyz, valid=xyz[2] > 0)


def test_the_map_is_that_of_the_window_and_turns_with_the_sample():
    fitted = create().fit([clip(sample) for sample in make_samples(2)])
    sample = clip(make_sample(60))
    view = fitted._view(sample)
    found = fitted.predict(sample)
    inside = torch.zeros(sample.size, dtype=torch.bool)
    inside[view.window] = True
    assert not bool(inside.all()) and float(found.map[inside].min()) > 0 and not bool(found.map[~inside].any())
    turned = replace(view, **{name: torch.rot90(getattr(view, name), 1, (-2, -1)) for name in ("rgb", "height", "part")})
    (score, heat), (score_, heat_) = fitted._judge(view), fitted._judge(turned)
    assert score_ == pytest.approx(score, abs=1e-5)
    torch.testing.assert_close(heat_, torch.rot90(heat, 1, (-2, -1)), atol=1e-5, rtol=1e-4)


def test_a_fragment_is_seen_in_a_window_of_normal_size(tmp_path):
    fitted = create().fit([clip(sample) for sample in make_samples(2)])
    sample, piece = clip(make_sample(60)), clip(make_sample(60), slice(30, 34), slice(30, 34))
    sides = [fitted._view(one).window[0] for one in (sample, piece)]
    assert sides[0].stop - sides[0].start == sides[1].stop - sides[1].start == 46
    assert mm3dad.load(fitted.save(tmp_path))._view(piece).window == fitted._view(piece).window


def test_a_model_of_other_inputs_is_refused(fitted):
    tensors, values = fitted._state()
    name = "discriminator.encoders.1.levels.0.0.weight"
    with pytest.raises(ModelError, match="other inputs than those of this version; fit it again"):
        create()._restore({**tensors, name: tensors[name][:, :12]}, values)


def test_training_lowers_the_loss_and_tells_its_terms():
    rows = create(epochs=3).fit(make_samples(3)).training.histories["das3d"].rows
    assert set(rows[0]) == {"focal", "dice", "rgb", "depth", "loss"} and rows[-1]["loss"] < rows[0]["loss"]


def test_validation_sets_the_threshold_and_one_sample_gives_none(fitted):
    assert fitted.predict(make_sample(60)).calibrated
    judged = create().fit(make_samples(2), validation=make_samples(2, first=20))
    assert judged._threshold == max(one.score for one in judged.predict_all(make_samples(2, first=20)))
    assert create().fit(make_samples(1)).predict(make_sample(60)).threshold is None


@pytest.mark.parametrize("missing", ["rgb", "xyz"])
def test_both_modalities_are_needed(fitted, missing):
    sample = make_sample(60, modalities=("xyz",) if missing == "rgb" else ("rgb",))
    with pytest.raises(DataError, match=f"has no {missing}, and das3d compares"):
        fitted.predict(sample)


def test_bad_samples(fitted):
    sample = make_sample(60)
    empty = torch.zeros(sample.size, dtype=torch.bool)
    with pytest.raises(DataError, match="has no valid point"):
        fitted.predict(replace(sample, valid=empty, xyz=torch.zeros_like(sample.xyz)))
    cloud = make_cloud(1)
    flat = Sample(rgb=torch.rand(3, 1, 400), xyz=cloud.xyz, meta=cloud.meta)
    with pytest.raises(DataError, match="a cloud without a grid"):
        fitted.predict(flat)
    one = empty.clone()
    one[20, 20] = True
    assert fitted.predict(replace(sample, valid=one, xyz=sample.xyz * one)).score >= 0


def test_a_rate_that_diverges_is_named():
    detector = create()
    with torch.no_grad():
        detector._nets["rgb"].last.bias.fill_(torch.nan)
    views = [detector._view(sample) for sample in make_samples(2)]
    with pytest.raises(TrainingError, match="training diverged in epoch 1: the loss became nan"):
        detector._train(views, [], lambda *_: None)


@pytest.mark.parametrize(
    ("options", "words"), [({"side": 36}, r"divisible by 2\^\(levels \+ 1\) = 8, got 36"), ({"width": 0}, "width must")]
)
def test_settings_out_of_range(options, words):
    with pytest.raises(ConfigError, match=words):
        create(**options)
