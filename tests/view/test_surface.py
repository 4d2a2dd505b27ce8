from __future__ import annotations

import numpy as np
import pytest

from mm3dad.view.colors import MISSING
from mm3dad.view.normals import toward_viewer
from mm3dad.view.surface import height_picture, height_values, shade_surface


def plane(size=24, slope=(0.0, 0.0)):
    y, x = np.mgrid[:size, :size].astype(np.float32) * 0.001
    return np.stack([x, y, 0.5 + slope[0] * x + slope[1] * y]).astype(np.float32), np.ones((size, size), bool)


def test_both_axis_conventions_face_the_viewer():
    xyz, valid = plane()
    assert toward_viewer(xyz, valid) == (-1.0, -1.0)
    upward = xyz * np.array([1, -1, -1], np.float32)[:, None, None]
    assert toward_viewer(upward, valid) == (1.0, 1.0)
    assert toward_viewer(xyz.reshape(3, 1, -1), valid.reshape(1, -1)) == (-1.0, -1.0)


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, -1)])
def test_light_comes_from_the_upper_left(signs):
    shades = []
    for slope in ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)):  # z away from the sensor: a slope < 0 faces left or up
        xyz, valid = plane(slope=slope)
        shades.append(shade_surface(xyz * np.array(signs, np.float32)[:, None, None], valid)[8:16, 8:16].mean())
    left, right, up, down = shades
    assert left > right and up > down


def test_height_is_over_the_plane_and_nearer_is_higher():
    xyz, valid = plane(slope=(0.5, -0.3))
    xyz[2, 10:14, 10:14] -= 0.004
    heights = height_values(xyz, valid)
    assert heights[11, 11] > 0.95 and heights[20, 3] < 0.2
    valid[0, 0] = False
    assert np.isnan(height_values(xyz, valid)[0, 0])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_points_do_not_fail(count):
    xyz, valid = plane(6)
    valid[:] = False
    valid.ravel()[:count] = True
    picture = height_picture(xyz, valid)
    assert picture.shape == (6, 6, 3) and (picture[5, 5] == MISSING).all()


def test_missing_pixels_are_marked():
    xyz, valid = plane()
    valid[5:8, 5:8] = False
    picture = height_picture(xyz, valid)
    assert (picture[6, 6] == MISSING).all() and (picture[15, 15] != MISSING).any()
