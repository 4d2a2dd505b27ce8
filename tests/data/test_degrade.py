"""Degradations: exact where they are arithmetic, of the stated strength where they are drawn, seeded, and harmless to what they leave."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mm3dad.data import degrade
from mm3dad.errors import ConfigError
from mm3dad.types import Meta, Sample
from tests.methods.parts import make_cloud, make_sample

CALLS = {
    "depth noise": lambda s, seed=0: degrade.add_depth_noise(s, 1e-3, seed),
    "picture noise": lambda s, seed=0: degrade.add_picture_noise(s, 0.05, seed),
    "points": lambda s, seed=0: degrade.drop_points(s, 0.3, seed),
    "shift": lambda s, seed=0: degrade.shift_picture(s, 1, 2),
    "exposure": lambda s, seed=0: degrade.expose(s, -0.5),
    "warmth": lambda s, seed=0: degrade.warm(s, 0.1),
    "blur": lambda s, seed=0: degrade.blur_picture(s, 1.5),
    "unit": lambda s, seed=0: degrade.scale_cloud(s, 1000),
    "occlusion": lambda s, seed=0: degrade.occlude(s, 0.2, seed),
}
SEEDED = ("depth noise", "picture noise", "points")


def make(size=(60, 80)):
    sample = make_sample(3, "both", size=size)
    return dataclasses.replace(sample, meta=Meta("test/both/003", "plate", "both", {"rgb": "a.png"}))


@pytest.mark.parametrize("name", CALLS)
def test_changes_only_what_it_says_and_repeats(name):
    sample = make()
    before = sample.rgb.clone(), sample.xyz.clone()
    one, two = CALLS[name](sample), CALLS[name](sample)
    assert torch.equal(one.rgb, two.rgb) and torch.equal(one.xyz, two.xyz)
    assert torch.equal(sample.rgb, before[0]) and torch.equal(sample.xyz, before[1])
    assert one.meta.paths == {} and one.meta.id == sample.meta.id and one.label == 1 and torch.equal(one.mask, sample.mask)
    touches_rgb = name in ("picture noise", "shift", "exposure", "warmth", "blur", "occlusion")
    assert torch.equal(one.rgb, sample.rgb) != touches_rgb and torch.equal(one.xyz, sample.xyz) == (touches_rgb and name != "occlusion")
    if name in SEEDED:
        other = CALLS[name](sample, 1)
        assert not (torch.equal(one.rgb, other.rgb) and torch.equal(one.xyz, other.xyz))


@pytest.mark.parametrize("name", CALLS)
def test_copes_with_a_missing_modality_and_with_clouds_without_a_grid(name):
    sample = make()
    picture = CALLS[name](dataclasses.replace(sample, xyz=None, valid=None))
    cloud = CALLS[name](dataclasses.replace(sample, rgb=None))
    assert picture.xyz is None and picture.valid is None and cloud.rgb is None
    assert torch.equal(picture.rgb, CALLS[name](sample).rgb) and torch.equal(cloud.xyz, CALLS[name](sample).xyz)
    if name != "shift":  # a cloud without a grid has no picture beside it and one row
        assert CALLS[name](make_cloud(0)).xyz.shape == (3, 1, 400)


def test_noise_has_the_deviation_asked_for():
    sample = make()
    step = (degrade.add_depth_noise(sample, 1e-3).xyz - sample.xyz)[2][sample.valid]
    assert float(step.std()) == pytest.approx(1e-3, rel=0.05) and abs(float(step.mean())) < 1e-4
    noisy = degrade.add_depth_noise(sample, 1e-3)
    rays = [(cloud.xyz[:2] / cloud.xyz[2])[:, sample.valid] for cloud in (sample, noisy)]
    torch.testing.assert_close(*rays)  # along the ray
    grey = Sample(rgb=torch.full((3, 60, 80), 0.25))
    assert float(degrade.add_picture_noise(grey, 0.04).rgb.std()) == pytest.approx(0.04 * 0.5, rel=0.05)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_as_many_points_are_lost_as_asked(share):
    sample = make()
    left = degrade.drop_points(sample, share)
    assert int(left.valid.sum()) == int(sample.valid.sum()) - round(share * int(sample.valid.sum()))
    assert torch.equal(left.xyz[:, left.valid], sample.xyz[:, left.valid])


def test_points_are_lost_in_patches():
    lost = ~degrade.drop_points(make(), 0.3).valid
    beside = (lost[:, 1:] & lost[:, :-1]).sum() / lost[:, 1:].sum()
    assert float(beside) > 0.6  # 0.3 where they are lost one by one


def test_a_shift_by_hand():
    rgb = torch.arange(12.0).view(1, 3, 4).repeat(3, 1, 1) / 12
    moved = degrade.shift_picture(Sample(rgb=rgb), 1, -2).rgb[0] * 12
    assert moved.round().tolist() == [[2, 3, 3, 3], [2, 3, 3, 3], [6, 7, 7, 7]]
    assert torch.equal(degrade.shift_picture(Sample(rgb=rgb), 0, 0).rgb, rgb)


def test_light_by_hand():
    sample = Sample(rgb=torch.full((3, 4, 4), 0.4))
    assert degrade.expose(sample, 1).rgb[:, 0, 0].tolist() == pytest.approx([0.8] * 3)
    assert degrade.expose(sample, 2).rgb.max() == 1
    assert degrade.warm(sample, 0.5).rgb[:, 0, 0].tolist() == pytest.approx([0.6, 0.4, 0.2])


def test_a_blur_keeps_the_mean_and_spreads_a_point():
    rgb = torch.zeros(3, 41, 41)
    rgb[:, 20, 20] = 1
    soft = degrade.blur_picture(Sample(rgb=rgb), 2).rgb
    assert float(soft.sum()) == pytest.approx(3, rel=1e-3)
    assert float(soft[0, 20, 20] / soft[0, 20, 22]) == pytest.approx(2.718281828**0.5, rel=0.01)


def test_an_occluder_covers_its_share_from_an_edge():
    sample = make()
    hidden = degrade.occlude(sample, 0.25)
    covered = (hidden.rgb == 0).all(0)
    assert float(covered.float().mean()) == pytest.approx(0.25) and not hidden.valid[covered].any()
    assert torch.equal(degrade.occlude(sample, 0).rgb, sample.rgb)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: degrade.add_depth_noise(s, -1),
        lambda s: degrade.add_picture_noise(s, 2),
        lambda s: degrade.drop_points(s, 1.1),
        lambda s: degrade.shift_picture(s, 60, 0),
        lambda s: degrade.expose(s, 9),
        lambda s: degrade.warm(s, 1),
        lambda s: degrade.blur_picture(s, -1),
        lambda s: degrade.scale_cloud(s, 0),
        lambda s: degrade.occlude(s, 1),
        lambda s: degrade.drop_points(s, float("nan")),
    ],
)
def test_refuses_what_is_no_strength(call):
    with pytest.raises(ConfigError, match="must lie between"):
        call(make())
