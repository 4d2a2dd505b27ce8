from __future__ import annotations

import numpy as np
import pytest

from mm3dad.errors import ShapeError
from mm3dad.view.cloud import splat, splat_clear, view_axes
from mm3dad.view.colors import PAGE

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def grid(size=60):
    y, x = np.mgrid[:size, :size].astype(np.float32) * 0.001
    xyz = np.stack([x, y, np.full_like(x, 0.5)])
    return xyz, np.ones((size, size), bool), np.full((3, size, size), 0.5, np.float32)


def test_axes_are_a_rotation_and_identity_from_the_sensor():
    turn = view_axes(33, 41)
    assert np.allclose(turn @ turn.T, np.eye(3)) and np.isclose(np.linalg.det(turn), 1)
    assert np.allclose(view_axes(0, 90), np.eye(3))


def test_from_the_sensor_the_picture_stands_like_the_image():
    xyz, valid, colors = grid()
    colors[:] = 0
    colors[0, :20, :20] = 1  # red upper left
    colors[2, 40:, 40:] = 1  # blue lower right
    picture = splat(xyz, valid, colors, (90, 90), azimuth=0, elevation=90)
    assert picture[15, 15].tolist() == [255, 0, 0] and picture[75, 75].tolist() == [0, 0, 255]


def test_a_nearer_point_hides_a_farther_one():
    far, valid, _ = grid()
    near = far.copy()
    near[2] -= 0.1
    xyz = np.concatenate([near, far], 2).reshape(3, 1, -1)
    colors = np.concatenate([np.broadcast_to(np.reshape(c, (3, 1, 1)), far.shape) for c in (RED, BLUE)], 2).reshape(3, 1, -1)
    valid = np.ones((1, xyz.shape[2]), bool)
    for order in (slice(None), slice(None, None, -1)):
        picture = splat(xyz[:, :, order], valid, colors[:, :, order], (64, 64), 0, 90)
        assert picture[32, 32].tolist() == [255, 0, 0]


def test_tilting_moves_raised_points_up_in_the_picture():
    xyz, valid, colors = grid()
    colors[:] = 0.2
    xyz[2, 25:35, 25:35] -= 0.02
    colors[0, 25:35, 25:35] = 1
    rows = [np.nonzero(splat(xyz, valid, colors, (120, 120), 0, elevation, dark=True)[..., 0] > 150)[0].mean() for elevation in (90, 50)]
    assert rows[1] < rows[0] - 10


def test_a_surface_has_no_holes():
    xyz, valid, colors = grid(40)
    picture = splat(xyz, valid, colors, (160, 160), 0, 90)
    assert (picture[20:140, 20:140] < 250).all()
    valid &= np.random.default_rng(0).random(valid.shape) > 0.05
    assert (splat(xyz, valid, colors, (80, 80), 20, 45)[30:50, 30:50] < 250).all()


def test_outliers_do_not_shrink_the_part():
    xyz, valid, colors = grid()
    clean = splat(xyz, valid, colors, (80, 80), 0, 90)
    xyz[:, 0, 0] = (50, -50, 3)
    drawn = splat(xyz, valid, colors, (80, 80), 0, 90)
    assert abs(int((drawn < 250).all(-1).sum()) - int((clean < 250).all(-1).sum())) < 80


def test_unmeasured_points_are_not_drawn():
    xyz, valid, colors = grid()
    valid[20:40, 20:40] = False
    picture = splat(xyz, valid, colors, (90, 90), 0, 90)
    assert picture[45, 45].tolist() == [255, 255, 255]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_points(count, dark):
    xyz, valid, colors = grid(10)
    valid[:] = False
    valid.ravel()[:count] = True
    picture = splat(xyz, valid, colors, (30, 40), dark=dark)
    assert picture.shape == (30, 40, 3) and picture.dtype == np.uint8
    assert (picture != picture[0, 0]).any() == (count > 0)


def test_same_points_and_one_row():
    xyz = np.ones((3, 1, 50), np.float32)
    assert splat(xyz, np.ones((1, 50), bool), np.zeros_like(xyz), (20, 20)).min() < 255


@pytest.mark.parametrize("dark", [False, True])
def test_a_clear_picture_on_paper_is_the_picture_on_it(dark):
    xyz, valid, colors = grid(30)
    valid[10:14, 8:20] = False
    clear = splat_clear(xyz, valid, colors, (60, 70), 20, 45).astype(float)
    assert clear.shape == (60, 70, 4) and clear[0, 0, 3] == 0 and clear[30, 35, 3] == 255
    cover = clear[..., 3:] / 255
    together = cover * clear[..., :3] + (1 - cover) * np.array(PAGE[dark])
    assert np.abs(together - splat(xyz, valid, colors, (60, 70), 20, 45, dark=dark)).max() <= 1.5  # both are rounded
    assert not splat_clear(xyz, np.zeros_like(valid), colors, (6, 7)).any()


def test_wrong_shapes_are_refused():
    xyz, valid, colors = grid(8)
    with pytest.raises(ShapeError, match="resample"):
        splat(xyz, valid, colors[:, :4])
    with pytest.raises(ShapeError, match=r"\(3, H, W\)"):
        splat(xyz[0], valid, colors[0])
    with pytest.raises(ShapeError, match="at least"):
        splat(xyz, valid, colors, (0, 5))
