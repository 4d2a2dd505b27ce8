from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mm3dad.errors import ConfigError, DataError
from mm3dad.view.browse import list_entries, pick_entry
from mm3dad.view.live import open_session
from mm3dad.view.session import Session
from tests.view.parts import make_evaluation


@pytest.fixture
def results(tmp_path):
    make_evaluation(tmp_path / "data", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def session(results) -> Session:
    found = open_session(results)
    found.open()
    return found


def test_points_are_centred_and_face_the_viewer(session):
    (side,) = session.sides
    assert len(side.points) == len(side.pixel) == int(side.layers.scene.valid.sum())
    assert np.abs(np.median(side.points, 0)).max() < 0.2 and np.abs(side.points).max() < 1.5
    hit = side.layers.scene.mask.ravel()[side.pixel]  # the defect is a bump toward the sensor, in the upper left
    assert side.points[hit].mean(0)[0] < 0 < side.points[hit].mean(0)[1]
    assert side.points[hit, 2].mean() > side.points[~hit, 2].mean()
    assert side.spacing == pytest.approx(np.diff(np.sort(np.unique(side.points[:, 0].round(4)))).mean(), rel=0.3)


@pytest.mark.parametrize("limit", [1, 50, 399, 1500, 10_000])
def test_a_thinner_cloud_is_spread_evenly(session, limit):
    (side,) = session.sides
    kept = side.thin(limit)
    assert len(np.unique(kept)) == len(kept) and 0.24 * min(limit, len(side.points)) <= len(kept) <= 1.3 * limit
    places = np.array([side.place(point) for point in kept])
    for axis in (0, 1):
        lines = np.unique(places[:, axis])
        assert len(lines) == 1 or len(set(np.diff(lines))) == 1  # every n-th row and column


def test_a_cloud_that_a_thinner_grid_misses_is_thinned_in_its_order(session):
    (side,) = session.sides
    even = side.pixel % 2 == 0
    side.points, side.pixel = side.points[even], side.pixel[even]
    assert side.thin(-(-len(side.points) // 4)).tolist() == list(range(0, len(side.points), 4))


def test_a_cloud_without_a_grid_is_thinned_in_its_order(session):
    (side,) = session.sides
    side.layers.scene = dataclasses.replace(side.layers.scene, organised=False)
    assert side.thin(100).tolist() == list(range(0, len(side.points), 16))


def test_a_ray_meets_the_point_under_it(session):
    (side,) = session.sides
    for point in (0, 411, 1200):
        found = session.pick(side.points[point] + np.array([0, 0, 5.0]), (0.0, 0.0, -2.0))
        assert found is not None and np.abs(side.points[found[1]] - side.points[point])[:2].max() < 1.6 * side.spacing
    assert session.pick((5.0, 5.0, 5.0), (0, 0, -1)) is None
    assert session.pick(side.points[0] + np.array([0, 0, 5.0]), (0, 0, 1)) is None  # behind the eye


def test_the_nearest_of_several_is_met(session):
    side = session.sides[0]
    side.points = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0.5]], np.float32)
    side.pixel = side.pixel[:3]
    assert session.pick((0, 0, 4), (0, 0, -1)) == (0, 1)


def test_moving_wraps_and_forgets(session):
    first = session.entry
    assert first.sample is not None
    session.move(-1)
    assert session.entry is session.all[-1]
    session.open()
    assert "sample" not in first.__dict__
    session.move(1)
    assert session.entry is first


def test_filter_keeps_the_place_or_refuses(session):
    session.filter(defect="cut")
    assert session.entry.defect == "cut" and all(entry.defect == "cut" for entry in session.shown)
    kept = session.entry
    session.filter()
    assert session.entry is kept and len(session.shown) == 6
    with pytest.raises(DataError, match="no sample fits"):
        session.filter(least=1e9)
    assert session.entry is kept


def test_colors_follow_layer_and_threshold(session):
    (side,) = session.sides
    assert session.layer_of(side) == "score" and session.threshold is None  # no model was calibrated for pixels
    session.threshold = 2.0
    before = session.colors(side)
    session.highlight = True
    assert (session.colors(side) != before).any(-1).sum() == (side.layers.scene.map.ravel()[side.pixel] > 2.0).sum()
    session.layer = "RGB"
    session.highlight = False
    assert (session.colors(side) != before).any()
    session.layer = "no such layer"
    with pytest.raises(ConfigError, match="known"):
        session.open()


def test_two_results_stand_side_by_side(results, plates):
    session = open_session(results, compare=results)
    left, right = session.open()
    assert session.shift(0) == -session.shift(1) < 0
    start = left.points[700] + np.array([session.shift(1), 0, 5.0])
    assert session.pick(start, (0, 0, -1))[0] == 1
    session.choose(1, 700)
    assert left.picked == right.picked == 700 and left.why is None
    root, model = plates
    session = open_session(root / "test", model=model, compare=model)
    left, right = session.open()
    assert left.entry.score == right.entry.score and left.entry is not right.entry
    session.choose(0, 2000)
    assert left.why is not None and right.why.facts == left.why.facts


def test_a_quick_look_needs_no_model(plates):
    root, model = plates
    session = open_session(root / "test", model=model, layer="groups")
    (side,) = session.open(quick=True)
    assert side.entry.score is None and session.layer_of(side) == "RGB"
    (side,) = session.open()
    assert side.entry.score > 0 and session.layer_of(side) == "groups"
    facts = dict(session.choose(0, 100).describe(100))
    assert {"pixel", "x, y, z in mm", "score", "score, RGB", "score, 3D", "ground truth", "group"} == set(facts)


def test_a_sample_without_points_is_refused(tmp_path, results):
    entries = list_entries(results)
    sample = entries[0].sample
    sample.xyz = sample.valid = None
    with pytest.raises(DataError, match="--png"):
        Session(entries, pick_entry(entries, results)).open()
