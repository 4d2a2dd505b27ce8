"""AUPRO against a slow, obvious curve over every distinct threshold, and its edges."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.metrics import aupro, aupro_musc, auroc, average_precision, f1_max, pixel_metrics, pro_curve


def curve_by_hand(maps, masks, thresholds):
    """(FPR, PRO) at each threshold, positive = score > threshold, one region at a time."""
    rates, overlaps = [], []
    for threshold in thresholds:
        rates.append(np.mean(maps[~masks] > threshold))
        shares = []
        for values, mask in zip(maps, masks, strict=True):
            regions, count = label(mask, structure=np.ones((3, 3)))
            shares += [np.mean(values[regions == i] > threshold) for i in range(1, count + 1)]
        overlaps.append(np.mean(shares))
    return np.array(rates), np.array(overlaps)


def area_by_hand(rates, overlaps, limit):
    if limit in rates:  # the curve may jump there; the jump itself has no area
        return np.trapezoid(overlaps[rates <= limit], rates[rates <= limit]) / limit
    kept = rates < limit
    return np.trapezoid(np.append(overlaps[kept], np.interp(limit, rates, overlaps)), np.append(rates[kept], limit)) / limit


def exact_by_hand(maps, masks, limit):
    distinct = np.unique(maps)[::-1]
    return area_by_hand(*curve_by_hand(maps, masks, np.append(distinct, distinct[-1] - 1)), limit)


def published_by_hand(maps, masks, limit, count):
    pool = np.sort(maps[~masks])
    positions = np.linspace(0, len(pool) - 1, count, dtype=int)
    _, overlaps = curve_by_hand(maps, masks, pool[positions])
    rates = np.append(1, 1 - (positions + 1) / len(pool))[::-1]
    return area_by_hand(rates, np.append(1, overlaps)[::-1], limit)


def random_maps(seed, levels, size=(3, 9, 11)):
    random = np.random.default_rng(seed)
    masks = random.random(size) < 0.25
    masks[0] = False
    masks[1, 2, 2] = True
    return random.integers(0, levels, size).astype(np.float32) + masks * random.integers(0, 3, size), masks


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 5, 40, 10_000]), st.sampled_from([1.0, 0.3, 0.05, 0.01]))
def test_exact_equals_the_curve_over_every_threshold(seed, levels, limit):
    maps, masks = random_maps(seed, levels)
    assert aupro(maps, masks, limit) == pytest.approx(exact_by_hand(maps, masks, limit), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 5, 10_000]), st.sampled_from([1.0, 0.3, 0.01]), st.sampled_from([2, 7, 100]))
def test_published_definition_equals_its_plain_form(seed, levels, limit, thresholds):
    maps, masks = random_maps(seed, levels)
    assert aupro(maps, masks, limit, thresholds) == pytest.approx(published_by_hand(maps, masks, limit, thresholds), abs=1e-9)


def test_exact_at_limit_one_with_one_region_is_the_auroc():
    maps = random_maps(0, 6)[0][:1, :8, :8]
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 2:5, 3:7] = True
    assert aupro(maps, masks, 1.0) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)


def test_small_regions_count_as_much_as_large_ones():
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :9, :9] = True
    masks[0, 15, 15] = True
    maps = np.zeros((1, 20, 20))
    maps[0, 15, 15] = 1.0
    assert aupro(maps, masks, 0.3) == pytest.approx(0.5 + 0.5 * 0.15)


def test_corner_neighbours_are_one_region():
    masks = np.zeros((1, 6, 6), bool)
    masks[0, 1, 1] = masks[0, 2, 2] = masks[0, 5, 5] = True
    maps = np.zeros((1, 6, 6))
    maps[0, 5, 5] = 1.0
    assert aupro(maps, masks, 1.0) == pytest.approx(0.5 + 0.5 * 0.5)


def test_constant_maps_give_the_chance_diagonal():
    masks = np.zeros((2, 8, 8), bool)
    masks[1, 2:4, 2:4] = True
    constant = np.full((2, 8, 8), 7.0)
    assert aupro(constant, masks, 0.3) == pytest.approx(0.15)
    assert aupro(constant, masks, 0.3, thresholds=100) == 0.0
    with pytest.raises(DataError, match="one rate only; use aupro"):
        aupro_musc(constant, masks)


def test_perfect_maps_give_one_and_only_rank_matters():
    masks = np.zeros((2, 8, 8), bool)
    masks[1, 2:4, 2:4] = True
    assert aupro(masks.astype(float), masks, 0.3) == pytest.approx(1.0)
    assert aupro(masks.astype(float), masks, 0.01) == pytest.approx(1.0)
    maps, masks = random_maps(3, 500)
    assert aupro(np.exp(maps / 100) - 5, masks) == pytest.approx(aupro(maps, masks), abs=1e-12)


def test_torch_lists_and_ragged_sizes():
    maps, masks = random_maps(4, 30)
    expected = aupro(maps, masks)
    assert aupro(torch.from_numpy(maps), torch.from_numpy(masks)) == expected
    assert aupro(list(maps), list(masks.astype(np.uint8))) == expected
    ragged = [maps[0, :4], maps[1], torch.from_numpy(maps[2])]
    assert aupro(ragged, [masks[0, :4], masks[1], masks[2]]) == pytest.approx(
        aupro([maps[2], maps[1], maps[0, :4]], [masks[2], masks[1], masks[0, :4]]), abs=1e-12
    )


def test_a_cloud_without_grid_is_a_map_of_one_row():
    maps, masks = np.arange(12.0).reshape(1, 1, 12), np.arange(12).reshape(1, 1, 12) >= 10
    assert aupro(maps, masks) == 1.0


def test_masks_that_define_nothing_are_errors():
    maps = np.zeros((2, 4, 4))
    for thresholds in (None, 100):
        with pytest.raises(DataError, match="AUPRO needs at least one defect pixel"):
            aupro(maps, maps, thresholds=thresholds)
        with pytest.raises(DataError, match="AUPRO needs at least one normal pixel"):
            aupro(maps, maps + 1, thresholds=thresholds)
    with pytest.raises(DataError, match="AUPRO needs at least one defect pixel"):
        aupro_musc(maps, maps)


@pytest.mark.parametrize("metric", [aupro, aupro_musc, pixel_metrics])
def test_bad_input_is_one_clear_error(metric):
    maps, masks = random_maps(5, 5)
    broken = maps.copy()
    broken[1, 0, 0] = np.nan
    with pytest.raises(DataError, match="map 1 must be finite, got 1 NaN"):
        metric(broken, masks)
    with pytest.raises(DataError, match="mask 0 must hold only 0 and 1"):
        metric(maps, masks * 3 + 2)
    with pytest.raises(ShapeError, match="same size"):
        metric(maps, masks[:, :-1])
    for wrong in (masks[:-1], masks[0]):
        with pytest.raises(ShapeError, match="\\(N, H, W\\) with the same N"):
            metric(maps, wrong)
    with pytest.raises(ShapeError, match="N >= 1"):
        metric([], [])
    with pytest.raises(ShapeError, match="real numbers"):
        metric(maps.astype(complex), masks)


def test_options_out_of_range():
    maps, masks = random_maps(6, 5)
    for limit in (0, -0.1, 1.1, float("nan")):
        for metric in (aupro, aupro_musc):
            with pytest.raises(ConfigError, match="limit must be"):
                metric(maps, masks, limit)
    for metric in (aupro, aupro_musc):
        with pytest.raises(ConfigError, match="at least 2"):
            metric(maps, masks, thresholds=1)


def test_bundle_equals_the_single_metrics():
    maps, masks = random_maps(7, 50)
    result = pixel_metrics(maps, masks)
    scores, labels = maps.ravel(), masks.ravel()
    assert result.pop("notes") == {}
    assert result == pytest.approx(
        {
            "pixel_auroc": auroc(scores, labels),
            "pixel_ap": average_precision(scores, labels),
            "pixel_f1": f1_max(scores, labels),
            "aupro_30": aupro(maps, masks, 0.3),
            "aupro_01": aupro(maps, masks, 0.01),
            "aupro_30_ref100": aupro(maps, masks, 0.3, thresholds=100),
        },
        abs=1e-12,
    )


def test_bundle_gives_none_with_the_reason():
    maps = np.zeros((1, 3, 3))
    good = pixel_metrics(maps, maps)
    assert all(value is None for name, value in good.items() if name != "notes") and len(good["notes"]) == 6
    assert "at least one defect pixel" in good["notes"]["aupro_30"]
    full = pixel_metrics(maps, maps + 1)
    assert full["aupro_30"] is None and full["pixel_auroc"] is None and full["pixel_ap"] == 1.0


def test_sixty_maps_take_under_a_second():
    random = np.random.default_rng(0)
    maps = random.random((60, 224, 224), dtype=np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[:40, 50:90, 60:80] = True
    started = time.process_time()
    aupro(maps, masks)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_pro_curve_is_the_curve_whose_area_aupro_gives(limit):
    maps, masks = random_maps(4, 7)
    points = pro_curve(maps, masks, limit, points=2000)
    assert points[0, 0] == 0 and points[-1, 0] == limit and (np.diff(points[:, 1]) >= -1e-12).all()
    assert np.trapezoid(points[:, 1], points[:, 0]) / limit == pytest.approx(aupro(maps, masks, limit), abs=2e-3)
    distinct = np.unique(maps)[::-1]
    rates, overlaps = curve_by_hand(maps, masks, np.append(distinct, distinct[-1] - 1))
    rates, lower = np.unique(rates, return_index=True)  # the curve rises straight up where defect pixels alone pass the threshold
    kept = rates <= limit
    assert np.interp(rates[kept], points[:, 0], points[:, 1]) == pytest.approx(overlaps[lower][kept], abs=0.02)
    with pytest.raises(DataError, match="at least one defect pixel"):
        pro_curve(maps, np.zeros_like(masks))
