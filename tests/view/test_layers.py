from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mm3dad.errors import ConfigError
from mm3dad.types import Meta, Sample
from mm3dad.view.colors import group_table
from mm3dad.view.layers import ABOVE, PICKED, Layers, find_layer
from mm3dad.view.normals import mean_curvature, surface_normals
from mm3dad.view.scene import build_scene
from tests.view.parts import make_map, make_sample


def dome(radius=0.05, size=60, sign=-1.0):
    """The front of a ball (sign -1: it bulges toward the sensor) or of a bowl, seen by a sensor that writes z away from it."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 0.04 - 0.02
    z = 0.5 + sign * (np.sqrt(radius**2 - x**2 - y**2) - radius)
    return np.stack([x, y, z]).astype(np.float32), np.ones((size, size), bool)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("grid", [True, False])
def test_curvature_of_a_ball_is_one_over_its_radius(sign, grid):
    xyz, valid = dome(sign=sign)
    if not grid:
        xyz, valid = xyz.reshape(3, 1, -1), valid.reshape(1, -1)
    found = mean_curvature(xyz, valid, surface_normals(xyz, valid))
    inner = np.zeros((60, 60), bool)
    inner[8:-8, 8:-8] = True
    assert np.median(found.reshape(60, 60)[inner]) == pytest.approx(-sign * 20, rel=0.05)


# Without a grid nothing tells which axis is up, so there is one case of it.
@pytest.mark.parametrize(("grid", "signs"), [(True, (1, 1, 1)), (True, (1, -1, -1)), (False, (1, 1, 1))])
def test_normals_are_those_of_the_ball(grid, signs):
    xyz, valid = dome()
    if grid:
        xyz = xyz * np.array(signs, np.float32)[:, None, None]
    exact = np.stack([xyz[0], -xyz[1] * signs[1], np.sqrt(0.05**2 - xyz[0] ** 2 - xyz[1] ** 2)]) / 0.05
    cloud = xyz if grid else xyz.reshape(3, 1, -1)
    normals = surface_normals(cloud, valid if grid else valid.reshape(1, -1)).reshape(3, 60, 60)
    assert np.abs(np.linalg.norm(normals, axis=0) - 1).max() < 1e-5
    assert (normals * exact).sum(0)[2:-2, 2:-2].min() > 0.999


def test_a_hole_and_lost_points_do_not_reach_their_neighbours():
    xyz, valid = dome()
    valid[20:26, 20:26] = False
    xyz[:, ~valid] = 0
    normals = surface_normals(xyz, valid)
    found = mean_curvature(xyz, valid, normals)
    assert np.isnan(found[22, 22]) and np.isfinite(found[valid]).all() and np.abs(found[valid]).max() < 200


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_points(count):
    for shape in ((6, 6), (1, 36)):
        valid = np.zeros(shape, bool)
        valid.ravel()[:count] = True
        xyz = np.zeros((3, *shape), np.float32)
        xyz[:, valid] = np.arange(1, count + 1)
        normals = surface_normals(xyz, valid)
        assert np.isfinite(normals).all() and np.isfinite(mean_curvature(xyz, valid, normals)[valid]).all()


@pytest.fixture
def layers(sample) -> Layers:
    scores = make_map(sample)
    scene = build_scene(sample, {"map": scores, "rgb_map": scores.flip(0), "layer2": scores.flip(1)})
    groups = np.where(scene.valid, np.arange(1600).reshape(40, 40) // 400, -1)
    return Layers(dataclasses.replace(scene, groups=groups), threshold=2.0)


def test_every_layer_paints_every_point(layers, sample):
    assert list(layers) == ["RGB", "height", "normals", "curvature", "score", "score, RGB", "layer2", "ground truth", "groups"]
    assert layers.first == "score"
    pictures = {name: layers.paint(name) for name in layers}
    assert all(picture.shape == (40, 40, 3) and picture.dtype == np.uint8 for picture in pictures.values())
    assert len({picture.tobytes() for picture in pictures.values()}) == len(layers)
    assert np.abs(pictures["RGB"] / 255 - layers.scene.rgb.transpose(1, 2, 0)).max() < 1 / 254
    hot, cold = pictures["score"][sample.mask.numpy()].astype(int), pictures["score"][~sample.mask.numpy()].astype(int)
    assert (hot[:, 0] - hot[:, 2]).mean() > 40 > np.abs(cold[:, 0] - cold[:, 2]).mean()


def test_threshold_and_picked_group_stand_out(layers, sample):
    painted = layers.paint("RGB", above=2.0)
    green = (painted[..., 1].astype(int) - painted[..., 0]) > 60
    assert (green == (layers.scene.map > 2.0)).all() and ABOVE[1] > 200
    picked = layers.paint("groups", picked=1, beside=[2])
    plain = layers.paint("groups")
    white = np.ptp(picked.astype(int), axis=-1) == 0
    assert white[layers.scene.groups == 1].all() and PICKED == (255, 255, 255)
    changed = (picked != plain).any(-1)
    assert changed[layers.scene.groups == 2].all() and not changed[layers.scene.groups == 0].any()


def test_following_groups_differ_in_colour():
    table = group_table().astype(int)
    assert np.abs(np.diff(table, axis=0)).sum(1).min() > 60 and not group_table().flags.writeable


def test_a_layer_is_found_in_any_case_and_a_wrong_one_named(layers):
    assert find_layer(layers, "CURVATURE") == "curvature"
    with pytest.raises(ConfigError, match="did you mean 'normals'"):
        find_layer(layers, "normal")


def test_points_without_a_grid_have_normals_and_light():
    plate = make_sample()
    flat = Sample(xyz=plate.xyz.reshape(3, 1, -1), meta=Meta(organised=False))
    layers = Layers(build_scene(flat))
    assert list(layers) == ["height", "normals", "curvature"] and layers.first == "height"
    assert np.ptp(layers.light[layers.scene.valid]) > 0.05
