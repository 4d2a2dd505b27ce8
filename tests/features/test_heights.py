from __future__ import annotations

import math

import pytest
import torch

from mm3dad.errors import ShapeError
from mm3dad.features.heights import fill_holes, find_window, make_relief, make_view
from mm3dad.ops.table import fit_table
from mm3dad.types import Sample


def tilted_plate(height=0.004):
    """A disc of 50 mm on a tilted table, seen from half a metre."""
    y, x = torch.meshgrid(torch.linspace(-0.1, 0.1, 80), torch.linspace(-0.1, 0.1, 80), indexing="ij")
    disc = (x**2 + y**2).sqrt() < 0.05
    return Sample(rgb=torch.rand(3, 80, 80), xyz=torch.stack([x, y, 0.5 + 0.1 * x - height * disc])), disc


def test_heights_are_above_the_tilted_table():
    sample, disc = tilted_plate()
    view = make_view(sample, disc, 40)
    assert view.rgb.shape == (3, 40, 40) and view.height.shape == view.part.shape == (40, 40)
    assert float(view.height[20, 20]) == pytest.approx(0.004, rel=0.02) and float(view.height[:2].abs().max()) < 1e-5
    assert bool(view.part[20, 20]) and not bool(view.part[0, 0])
    assert view.relief == pytest.approx(0.01, rel=0.05)  # a tenth of its 100 mm
    assert make_view(tilted_plate(0.03)[0], disc, 40).relief == pytest.approx(0.03, rel=0.05)


def test_a_view_shows_the_part_with_room_beside_it():
    sample, disc = tilted_plate()
    window = find_window(disc)
    rows, columns = window
    assert rows == columns and 41 <= rows.stop - rows.start <= 47 and abs(rows.start + rows.stop - 80) <= 1
    view = make_view(sample, disc, 40)
    assert view.window == window
    assert torch.equal(view.height, make_relief(Sample(xyz=sample.xyz), disc, 40, window).height)
    share = float(view.part.float().mean())
    assert share == pytest.approx(math.pi / 4 / 1.15**2, rel=0.1)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (slice(0, 0), slice(0, 0), (slice(0, 30), slice(0, 50))),  # no part: everything
        (slice(0, 30), slice(0, 50), (slice(0, 30), slice(0, 50))),  # the part fills the picture
        (slice(12, 13), slice(20, 21), (slice(11, 13), slice(19, 21))),  # one point
        (slice(0, 10), slice(40, 50), (slice(0, 12), slice(38, 50))),  # in a corner
        (slice(5, 25), slice(5, 45), (slice(0, 30), slice(2, 48))),  # wider than the picture is high
    ],
)
def test_windows_stay_in_the_picture(rows, columns, expected):
    part = torch.zeros(30, 50, dtype=torch.bool)
    part[rows, columns] = True
    assert find_window(part) == expected


def test_a_fragment_gets_the_least_window():
    part = torch.zeros(30, 50, dtype=torch.bool)
    part[20:22, 20:22] = True
    assert find_window(part, 0.4) == (slice(10, 30), slice(11, 31))
    assert find_window(part, 1.0) == (slice(0, 30), slice(0, 50))


def test_a_fragment_makes_everything_in_its_window_the_part():
    sample, disc = tilted_plate()
    piece = disc.clone()
    piece[:, :36] = piece[:, 44:] = piece[:36] = piece[44:] = False
    assert bool(make_view(sample, piece, 40, 0.5).part.all())
    whole = make_view(sample, disc, 40, 0.6)  # a little smaller than most is no fragment
    assert not bool(whole.part.all()) and whole.window[0].stop - whole.window[0].start == 48


def test_holes_do_not_pull_heights_to_zero():
    sample, disc = tilted_plate()
    holes = sample.xyz.clone()
    holes[:, 38:42, 38:42] = 0
    view = make_view(Sample(rgb=sample.rgb, xyz=holes), disc & (holes[2] > 0), 40)
    assert float(view.height[19:21, 19:21].min()) > 0.0039
    finer = make_view(sample, disc, 160)
    assert finer.height.shape == (160, 160) and bool(finer.height.isfinite().all())


def test_filling_works_from_the_edges():
    values, known = torch.zeros(9, 9), torch.zeros(9, 9, dtype=torch.bool)
    values[4, 4], known[4, 4] = 3.0, True
    torch.testing.assert_close(fill_holes(values, known), torch.full((9, 9), 3.0))
    assert not bool(fill_holes(values, torch.zeros_like(known)).any())
    assert torch.equal(fill_holes(values, torch.ones_like(known)), values)


def test_the_table_is_found_beside_outliers_and_its_absence_is_told():
    sample, _ = tilted_plate()
    xyz = sample.xyz.clone()
    xyz[2, 0, ::5] -= 0.05
    table = fit_table(xyz, sample.valid)
    normal = torch.tensor([0.1, 0.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(table.normal, normal / normal.norm(), atol=1e-5, rtol=0)
    assert table.roughness < 1e-4 and float(table.height(sample.xyz)[40, 40]) == pytest.approx(0.004, rel=0.02)
    inside = torch.zeros_like(sample.valid)
    inside[20:60, 20:60] = True
    assert fit_table(sample.xyz, inside) is None
    assert fit_table(sample.xyz[:, :5, :5], sample.valid[:5, :5]) is None
    with pytest.raises(ShapeError, match=r"xyz must be \(3, H, W\)"):
        fit_table(sample.xyz[0], sample.valid)
