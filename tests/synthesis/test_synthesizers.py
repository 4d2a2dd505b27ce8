from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError
from mm3dad.registry import SYNTHESIZERS
from mm3dad.synthesis.part import find_part
from mm3dad.synthesis.synthesizers import CutPasteConfig, DualConfig, Stretch, StretchConfig
from tests.methods.parts import make_cloud, make_sample

NAMES = ("cutpaste", "dual", "stretch")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(name, sample, seed=0, source=None):
    return SYNTHESIZERS.get(name)().make(sample, seeded(seed), source)


def changed(before, after):
    """Pixels at which anything differs."""
    found = torch.zeros(before.size, dtype=torch.bool)
    for name in before.modalities:
        found |= (getattr(before, name) != getattr(after, name)).any(0)
    return found


def test_they_are_registered():
    assert set(NAMES) <= set(mm3dad.list_synthesizers())


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_is_what_was_altered(name):
    sample, source = make_sample(1), make_sample(2)
    for seed in range(10):
        made = make(name, sample, seed, source)
        altered = changed(sample, made)
        assert made.label == 1 and made.meta.defect == name and made.meta.id == sample.meta.id
        assert bool(made.mask.any()) and not bool((altered & ~made.mask).any()) and bool((made.mask <= find_part(sample)).all())
        assert float((made.mask & ~altered).sum()) <= 0.05 * float(made.mask.sum()) + 1
        assert torch.equal(made.valid, sample.valid)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_repeats_bit_for_bit_and_leaves_the_sample_alone(name):
    sample, source = make_sample(1), make_sample(2)
    kept = replace(sample, rgb=sample.rgb.clone(), xyz=sample.xyz.clone())
    one, other, third = make(name, sample, 4, source), make(name, sample, 4, source), make(name, sample, 5, source)
    for field in ("rgb", "xyz", "mask"):
        assert torch.equal(getattr(one, field), getattr(other, field))
    assert not torch.equal(one.mask, third.mask)
    assert torch.equal(sample.xyz, kept.xyz) and torch.equal(sample.rgb, kept.rgb)


def test_stretch_leaves_the_image_and_takes_a_cloud_without_a_grid():
    sample = make_sample(1)
    assert torch.equal(make("stretch", sample).rgb, sample.rgb)
    cloud = make_cloud(1)
    made = make("stretch", cloud)
    moved = (made.xyz - cloud.xyz).norm(dim=0)
    assert torch.equal(moved > 0, made.mask) and 0.01 * 396 <= int(made.mask.sum()) <= 0.02 * 400 + 1


def test_heights_in_metres_and_in_radii():
    sample = make_sample(1)
    for profile in ("cone", "bulge"):
        for seed in range(5):
            fixed = Stretch(StretchConfig(profile=profile, height=0.004)).make(sample, seeded(seed))
            assert float((fixed.xyz - sample.xyz).norm(dim=0).max()) == pytest.approx(0.004, rel=1e-3)
    for scale in (1.0, 10.0):
        large = replace(sample, xyz=scale * sample.xyz)
        made = Stretch().make(large, seeded(3))
        shares = (made.xyz - large.xyz).norm(dim=0).max() / scale
        assert float(shares) == pytest.approx(float((Stretch().make(sample, seeded(3)).xyz - sample.xyz).norm(dim=0).max()), rel=1e-3)
    published = [Stretch(StretchConfig(reference=True)).make(replace(sample, xyz=s * sample.xyz), seeded(3)) for s in (1.0, 2.0)]
    heights = [float((made.xyz - s * sample.xyz).norm(dim=0).max()) for made, s in zip(published, (1.0, 2.0), strict=True)]
    assert heights[1] == pytest.approx(4 * heights[0], rel=1e-2)


def test_cutpaste_uses_what_there_is():
    both, source = make_sample(1), make_sample(2)
    for missing in ({"rgb": None}, {"xyz": None, "valid": None}):
        made = make("cutpaste", replace(both, **missing), 1, replace(source, **missing))
        assert bool(made.mask.any()) and made.modalities == replace(both, **missing).modalities
    assert bool(make("cutpaste", both, 1).mask.any())
    for wrong in (make_sample(2, size=(32, 64)), replace(source, rgb=None)):
        with pytest.raises(DataError, match="must have the size and the modalities of"):
            make("cutpaste", both, 1, wrong)


@pytest.mark.parametrize("name", NAMES)
def test_one_point_and_none(name):
    sample = make_sample(1)
    empty = torch.zeros(sample.size, dtype=torch.bool)
    one = empty.clone()
    one[30, 30] = True
    for valid in (empty, one):
        view = replace(sample, xyz=sample.xyz * valid, valid=valid)
        if name == "stretch" or not bool(valid.any()):
            with pytest.raises(DataError, match=r"; check the"):
                make(name, view)
        else:
            assert make(name, view).mask.tolist() == one.tolist()


@pytest.mark.parametrize("name", ["dual", "stretch"])
def test_a_missing_modality_is_named(name):
    with pytest.raises(DataError, match="needs xyz, which sample"):
        make(name, replace(make_sample(1), xyz=None, valid=None))


@pytest.mark.parametrize(
    "call",
    [
        lambda: StretchConfig(low=2.0),
        lambda: StretchConfig(height=-1.0),
        lambda: StretchConfig(profile="bulge", reference=True),
        lambda: CutPasteConfig(threshold=1.0),
        lambda: DualConfig(low=0.0),
    ],
)
def test_settings_out_of_range(call):
    with pytest.raises(ConfigError, match="must|leave"):
        call()


def test_the_part_is_what_stands_on_the_table():
    y, x = torch.meshgrid(torch.linspace(-0.1, 0.1, 80), torch.linspace(-0.1, 0.1, 80), indexing="ij")
    disc = (x**2 + y**2).sqrt() < 0.05
    z = 0.5 + 0.1 * x + 2e-4 * torch.randn(80, 80, generator=seeded()) - 0.004 * disc
    sample = mm3dad.Sample(xyz=torch.stack([x, y, z]))
    found = find_part(sample)
    assert float((found ^ disc).float().mean()) < 0.01
    flat = mm3dad.Sample(xyz=torch.stack([x, y, z + 0.004 * disc]))
    assert torch.equal(find_part(flat), flat.valid)
    bare = replace(sample, xyz=sample.xyz * disc, valid=None)
    assert torch.equal(find_part(bare), bare.valid)
    image = mm3dad.Sample(rgb=torch.rand(3, 9, 9))
    assert bool(find_part(image).all())
