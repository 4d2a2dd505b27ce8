from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.synthesis.dual import STRONG, VISIBLE, alter_pair, draw_dropout, draw_pair, skew_profile


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def view():
    part = torch.zeros(48, 48, dtype=torch.bool)
    part[6:42, 6:42] = True
    return (
        torch.full((3, 48, 48), 0.5),
        0.4 + 0.2 * torch.rand(48, 48, generator=seeded(5)),
        part,
        torch.rand(3, 48, 48, generator=seeded(6)),
    )


@pytest.mark.parametrize("use", [(True, True), (True, False), (False, True), (False, False)])
def test_altered_pixels_are_the_mask_and_no_others(view, use):
    rgb, depth, part, texture = view
    for seed in range(20):
        pair = alter_pair(rgb, depth, part, texture, seeded(seed), use)
        coloured, moved = (pair.rgb != rgb).any(0), pair.depth != depth
        assert not bool((pair.mask & ~part).any()) and not bool(((coloured | moved) & ~pair.mask).any())
        assert bool(pair.mask.any()) == any(use) and bool(coloured.any()) == use[0] and bool(moved.any()) == use[1]
        if use == (False, True):
            assert float((pair.mask & ~moved).sum()) <= 0.02 * float(pair.mask.sum()) + 1  # float32 swallows the least changes


def test_depth_grows_in_hollows_falls_on_bumps_within_the_amplitude(view):
    rgb, depth, part, texture = view
    for seed in range(20):
        change = alter_pair(rgb, depth, part, texture, seeded(seed), amplitude=(0.05, 0.1)).depth - depth
        assert 0.049 <= float(change.abs().max()) <= 0.1001
    both = torch.stack([alter_pair(rgb, depth, part, texture, seeded(seed)).depth - depth for seed in range(60)])
    assert float(both.max()) > 0.1 and float(both.min()) < -0.1


def test_regions_given_may_run_over_the_edge_of_the_part(view):
    rgb, depth, part, texture = view
    signs = torch.zeros(48, 48, dtype=torch.int8)
    signs[0:13, 10:30] = 1
    pair = alter_pair(rgb, depth, part, texture, seeded(), amplitude=(0.1, 0.1), signs=signs)
    change = pair.depth - depth
    assert not bool(pair.mask[~part].any()) and not bool(change[~part].any())
    inside = alter_pair(rgb, depth, part, texture, seeded(), amplitude=(0.1, 0.1), signs=signs * part).depth - depth
    assert float(change[6, 20]) > 2 * float(inside[6, 20])
    missed = alter_pair(rgb, depth, part, texture, seeded(), signs=signs * ~part)
    assert torch.equal(missed.rgb, rgb) and torch.equal(missed.depth, depth) and not bool(missed.mask.any())


def test_drawn_pairs_are_normal_or_defective_as_often_as_said(view):
    rgb, depth, part, texture = view
    generator = seeded()
    kinds, changes = [], []
    for _ in range(400):
        pair = draw_pair(rgb, depth, part, [texture], generator)
        coloured, moved = (pair.rgb != rgb).any(0), pair.depth != depth
        seen = ((pair.rgb - rgb).abs().amax(0) > VISIBLE[0]) | ((pair.depth - depth).abs() > VISIBLE[1])
        assert torch.equal(pair.mask, seen) and not bool(((coloured | moved) & ~part).any())
        assert float(pair.depth.min()) >= 0 and float(pair.depth.max()) <= 1
        kinds.append((bool(coloured.any()), bool(moved.any())))
        changes.append(float((pair.depth - depth).abs().max()))
    for kind, share in (((False, False), 0.3), ((True, True), 0.7 / 3), ((True, False), 0.7 / 3), ((False, True), 0.7 / 3)):
        assert abs(kinds.count(kind) / 400 - share) < 4 * (share * (1 - share) / 400) ** 0.5 + 0.02
    drawn = torch.tensor([change for change in changes if change > 0])
    assert float(drawn.max()) <= STRONG + 1e-6 and 0.3 < float((drawn < 0.063).float().mean()) < 0.75  # 0.063: half of the draws


def test_drawn_pairs_without_a_part_use_the_whole_picture(view):
    rgb, depth, part, texture = view
    masks = [draw_pair(rgb, depth, torch.zeros_like(part), [texture], seeded(seed)).mask for seed in range(20)]
    assert bool(torch.stack(masks)[:, ~part].any())


def test_image_and_depth_share_their_place(view):
    rgb, depth, part, texture = view
    for seed in range(30):
        pair = alter_pair(rgb, depth, part, texture, seeded(seed))
        coloured, moved = (pair.rgb != rgb).any(0), pair.depth != depth
        near = torch.nn.functional.max_pool2d(moved.float()[None], 7, stride=1, padding=3)[0] > 0
        assert not bool((coloured & ~near).any())


def test_profiles_start_at_the_border_and_reach_one():
    signs = torch.zeros(41, 41, dtype=torch.int8)
    signs[5:36, 5:36] = 1
    signs[0:3, 38:41] = -1
    for spread in (0.2, 0.8):
        for skew in (-4.0, 0.0, 4.0):
            profile = skew_profile(signs, spread, skew)
            assert not bool(profile[signs == 0].any()) and float(profile.min()) >= 0 and 0.95 < float(profile.max()) <= 1
            assert float(profile[5, 20]) < 0.35
    bowl = skew_profile(signs, 0.4, 0.0)[20, 5:21]
    assert bool((bowl.diff() > 0).all())
    steep, plateau = skew_profile(signs, 0.5, 4.0), skew_profile(signs, 0.5, -4.0)
    assert float(steep[signs == 1].mean()) < float(skew_profile(signs, 0.5, 0.0)[signs == 1].mean()) < float(plateau[signs == 1].mean())
    with pytest.raises(ConfigError, match="spread must be above 0"):
        skew_profile(signs, 0.0, 1.0)


def test_augmentation_dropout_has_its_frequencies():
    generator = seeded()
    drawn = [draw_dropout(generator) for _ in range(4000)]
    expected = {(False, False): 0.5, (True, True): 0.3, (True, False): 0.1, (False, True): 0.1}
    for case, share in expected.items():
        # Four standard errors of a share among 4,000.
        assert abs(drawn.count(case) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert {draw_dropout(generator, normal=0.0, single=0.0) for _ in range(50)} == {(True, True)}
    assert {draw_dropout(generator, normal=1.0) for _ in range(50)} == {(False, False)}
    assert (True, True) not in {draw_dropout(generator, normal=0.0, single=0.5) for _ in range(50)}
    with pytest.raises(ConfigError, match="single in"):
        draw_dropout(generator, single=0.6)


def test_repeats_and_refuses(view):
    rgb, depth, part, texture = view
    one, other = (alter_pair(rgb, depth, part, texture, seeded(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(DataError, match="got none"):
        alter_pair(rgb, depth, torch.zeros_like(part), texture, seeded())
    with pytest.raises(ShapeError, match="resize them together"):
        alter_pair(rgb[:, :9], depth, part, texture, seeded())
