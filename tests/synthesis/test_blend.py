from __future__ import annotations

import pytest
import torch

from mm3dad.errors import DataError, ShapeError
from mm3dad.synthesis.blend import alter_image, blend_texture, draw_texture, paste_colour, place_components
from mm3dad.synthesis.depth import keep_valid, move_along_rays, paste_depth


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def picture():
    return torch.rand(3, 20, 30, generator=seeded(9))


def test_blending_changes_the_region_and_nothing_else(picture):
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[3:9, 4:20] = True
    texture = draw_texture((20, 30), seeded())
    blended = blend_texture(picture, texture, mask, 0.7)
    assert torch.equal(blended[:, ~mask], picture[:, ~mask])
    torch.testing.assert_close(blended[:, mask], 0.7 * texture[:, mask] + 0.3 * picture[:, mask])
    assert torch.equal(blend_texture(picture, texture, mask, 0.0), picture)
    with pytest.raises(ShapeError, match="resize the texture"):
        blend_texture(picture, texture[:, :5], mask, 0.5)


def test_textures_and_changes_stay_in_range_differ_and_repeat(picture):
    for seed in range(40):
        texture, altered = draw_texture((20, 30), seeded(seed)), alter_image(picture, seeded(seed))
        for found in (texture, altered):
            assert found.shape == picture.shape and float(found.min()) >= 0 and float(found.max()) <= 1 and bool(found.isfinite().all())
        assert not torch.equal(altered, picture) and torch.equal(altered, alter_image(picture, seeded(seed)))
    assert torch.equal(alter_image(picture, seeded(), 0), picture)
    assert len({float(draw_texture((8, 8), seeded(seed)).mean()) for seed in range(10)}) == 10
    flat = torch.full((3, 6, 6), 0.5)
    assert all(bool(alter_image(flat, seeded(seed), 8).isfinite().all()) for seed in range(20))


def test_a_region_on_the_part_keeps_its_place():
    region, part = torch.zeros(2, 20, 20, dtype=torch.bool)
    region[5:9, 5:9] = True
    part[4:12, 4:12] = True
    place = place_components(region, part, seeded())
    assert torch.equal(place.to_mask((20, 20)), region) and torch.equal(place.target, place.source)


def test_a_region_beside_the_part_moves_onto_it():
    region, part = torch.zeros(2, 30, 30, dtype=torch.bool)
    region[0:4, 0:4] = True
    region[0:4, 20:24] = True
    part[15:28, 10:25] = True
    for seed in range(20):
        place = place_components(region, part, seeded(seed))
        mask = place.to_mask((30, 30))
        assert len(place.target) == len(place.target.unique()) == len(place.source) and not bool((mask & ~part).any())
        assert bool(region.flatten()[place.source].all())
    with pytest.raises(DataError, match="at least one pixel of the part"):
        place_components(region, torch.zeros(30, 30, dtype=torch.bool), seeded())
    with pytest.raises(ShapeError, match="resize the source"):
        place_components(region[:9], part, seeded())
    assert not len(place_components(torch.zeros_like(part), part, seeded()).target)


def test_pasted_depth_has_the_source_relief_at_the_target_height():
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    xyz = torch.stack([x, y, torch.full_like(x, 0.5)]) + 0.1
    source = torch.stack([x, y, 0.3 + 0.01 * torch.sin(x)])
    region, part = torch.zeros(2, 20, 20, dtype=torch.bool)
    region[0:4, 0:4] = True
    part[10:18, 10:18] = True
    place = place_components(region, part, seeded(1))
    pasted, mask = paste_depth(xyz, source, place, 0.002), place.to_mask((20, 20))
    assert torch.equal(pasted[:2], xyz[:2]) and torch.equal(pasted[:, ~mask], xyz[:, ~mask])
    torch.testing.assert_close(pasted[2, mask].mean(), torch.tensor(0.602), atol=1e-5, rtol=0)
    relief = source[2].flatten()[place.source]
    torch.testing.assert_close(pasted[2].flatten()[place.target] - 0.602, relief - relief.mean(), atol=1e-6, rtol=0)
    valid = torch.ones(20, 20, dtype=torch.bool)
    valid[:, :12] = False
    assert bool(valid.flatten()[keep_valid(place, valid, torch.ones_like(valid)).target].all())
    assert not len(keep_valid(place, valid, torch.zeros_like(valid)).target)
    assert torch.equal(paste_depth(xyz, source, keep_valid(place, ~part, part), 0.1), xyz)


def test_colour_is_pasted_at_the_target_from_the_source(picture):
    region, part = torch.zeros(2, 20, 30, dtype=torch.bool)
    region[0:4, 0:4] = True
    part[10:18, 10:18] = True
    place = place_components(region, part, seeded(1))
    other = 1 - picture
    pasted = paste_colour(picture, other, place, 1.0)
    assert torch.equal(pasted.flatten(1)[:, place.target], other.flatten(1)[:, place.source])
    outside = ~place.to_mask((20, 30))
    assert torch.equal(pasted[:, outside], picture[:, outside])


def test_points_move_along_their_rays():
    xyz = torch.rand(3, 6, 7, generator=seeded()) + 0.1
    xyz[:, 0, 0] = 0
    moved = move_along_rays(xyz, xyz[2] + 0.05)
    seen = xyz[2] > 0
    torch.testing.assert_close(moved[2, seen], xyz[2, seen] + 0.05)
    torch.testing.assert_close((moved[:2] / moved[2])[:, seen], (xyz[:2] / xyz[2])[:, seen])
    assert not bool(moved[:, 0, 0].any())
