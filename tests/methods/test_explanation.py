"""Why a place has its score: the answer must name the right group, the right normal patch, and the right numbers."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.features.branches import patch_grid
from mm3dad.methods import _modality
from mm3dad.methods.explanation import Explanation
from tests.methods.parts import SIZE, SMALL, make_cloud, make_sample, make_samples


def create(**options):
    return mm3dad.create("duet", **(SMALL | options))


@pytest.fixture(scope="module", autouse=True)
def networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_modality, "RGBBranch", functools.cache(_modality.RGBBranch))
        yield


@pytest.fixture(scope="module")
def normal():
    return make_samples(5)


@pytest.fixture(scope="module")
def detector(normal):
    return create(global_bank=True).fit(normal)


@pytest.fixture(scope="module")
def bad():
    return make_sample(70, "both")


@pytest.fixture(scope="module")
def explained(detector, bad) -> Explanation:
    return detector.explain(bad)


def test_prediction_is_the_one_of_predict(detector, bad, explained):
    prediction = detector.predict(bad)
    assert explained.prediction.score == prediction.score and torch.equal(explained.prediction.map, prediction.map)
    assert explained.maps == {}


def test_highest_place_lies_on_the_defect_and_both_modalities_speak(bad, explained):
    ((row, column),) = explained.peaks(1)
    assert bool(bad.mask[row - 6 : row + 7, column - 6 : column + 7].any())
    reasons = explained.at(row, column)
    assert set(reasons) == {"rgb", "xyz"}
    good = explained.at(*_far_from(bad.mask))
    for name, reason in reasons.items():
        assert reason.after > good[name].after and reason.before == reason.after


@pytest.mark.parametrize("searched", ["similar samples", "coreset"])
def test_matches_are_the_nearest_rows_by_brute_force(detector, normal, bad, searched):
    sample = normal[1] if searched == "similar samples" else bad  # a defect takes it out of reach of the normal samples
    explained = detector.explain(sample)
    row, column = explained.peaks(1)[0]
    for name, reason in explained.at(row, column).items():
        bank = detector._parts[name].bank
        features = bank.normalise(explained.evidence[name].patches.features)[reason.patch]
        gaps = (bank.rows.float() - features).norm(dim=1)
        if searched == "coreset":
            candidates = bank.coreset[gaps[bank.coreset].topk(3, largest=False).indices]
        else:
            candidates = torch.stack([bank.start[i] + gaps[bank.span(i)].argmin() for i in range(len(normal))])
            candidates = candidates[gaps[candidates].topk(3, largest=False).indices]
        assert [match.distance for match in reason.matches] == pytest.approx(gaps[candidates].tolist(), rel=1e-3, abs=2e-3)
        for match, candidate in zip(reason.matches, candidates.tolist(), strict=True):
            assert match.id == bank.ids[sum(candidate >= int(first) for first in bank.start[1:])]
            cells = patch_grid((SIZE, SIZE), SMALL["image_size"])
            assert list(match.place) == pytest.approx([(int(p) + 0.5) / n for p, n in zip(bank.place[candidate], cells, strict=True)])
            assert match.held == float(bank.held[candidate])


def test_group_and_members_contain_the_place(bad, explained):
    groups = explained.group_map()
    assert groups.shape == bad.mask.shape and bool((groups[~bad.valid] == -1).all()) and bool((groups[bad.valid] >= 0).all())
    for row, column in [(5, 7), (40, 33), (SIZE - 1, SIZE - 1)]:
        reasons = explained.at(row, column)
        assert int(groups[row, column]) == reasons["xyz"].patch
        assert row * SIZE + column in reasons["rgb"].members.tolist()
        members = reasons["xyz"].members
        assert len(members) == SMALL["group_size"]
        y, x = reasons["xyz"].place
        assert y * SIZE + x in members.tolist()
        for reason in reasons.values():
            assert reason.neighbors and reason.patch not in [one.patch for one in reason.neighbors]
            for one in reason.neighbors:
                assert all(abs(a - b) < SIZE / 2 for a, b in zip(one.place, reason.place, strict=True))
        for one in reasons["xyz"].neighbors:
            assert explained.at(*one.place)["xyz"].after == pytest.approx(one.score)


def test_enhancement_shows_both_scores(normal, bad):
    explained = create(enhance=True).fit(normal).explain(bad)
    assert set(explained.maps) == {"rgb", "xyz"} and explained.maps["rgb"].shape == (SIZE, SIZE)
    changed = [reason.before != reason.after for place in explained.peaks(3) for reason in explained.at(*place).values()]
    assert any(changed)


def test_missing_points_and_missing_modality(detector, bad, explained):
    assert set(explained.at(0, 0)) == {"rgb"}
    alone = detector.explain(replace(bad, xyz=None, valid=None))
    assert set(alone.at(30, 30)) == {"rgb"} and alone.group_map() is None
    points = detector.explain(replace(bad, rgb=None))
    assert points.at(0, 0) == {} and set(points.at(30, 30)) == {"xyz"}


def test_a_cloud_without_a_grid_has_groups_but_no_places(normal):
    clouds = [make_cloud(seed) for seed in range(3)]
    explained = create(modalities="xyz").fit(clouds).explain(make_cloud(60, defect="dent"))
    reason = explained.at(0, 11)["xyz"]
    assert reason.place[0] == 0 and all(match.place is None for match in reason.matches)
    assert explained.group_map().shape == (1, 400)


def test_a_model_that_was_saved_explains_the_same(tmp_path, detector, bad, explained):
    again = mm3dad.load(detector.save(tmp_path)).explain(bad)
    first, second = (one.at(*explained.peaks(1)[0]) for one in (explained, again))
    for name in first:
        assert first[name].matches == second[name].matches and first[name].after == second[name].after


def test_cached_features_explain_the_same(tmp_path, normal, bad, explained):
    again = create(global_bank=True, feature_cache=str(tmp_path)).fit(normal).explain(bad)
    place = explained.peaks(1)[0]
    assert again.at(*place)["xyz"].matches == explained.at(*place)["xyz"].matches


def test_a_flat_map_has_no_peak(explained):
    prediction = replace(explained.prediction, map=torch.zeros(SIZE, SIZE))
    assert replace(explained, prediction=prediction).peaks(3) == []
    assert len(explained.peaks(3)) == 3


def test_bad_input_is_refused(detector, bad, explained):
    for place in ((-1, 0), (0, SIZE), (SIZE, 0)):
        with pytest.raises(DataError, match="outside sample"):
            explained.at(*place)
    with pytest.raises(ModelError, match="not fitted"):
        create().explain(bad)
    with pytest.raises(ConfigError, match="patchcore does not explain"):
        mm3dad.create("patchcore", image_size=64).explain(bad)


def _far_from(mask):
    row, column = mask.nonzero().float().mean(0).tolist()
    return (5 if row > SIZE / 2 else SIZE - 6), (5 if column > SIZE / 2 else SIZE - 6)
