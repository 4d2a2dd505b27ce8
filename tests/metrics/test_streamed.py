"""Pixel metrics of maps that are read one by one, beside those of all pixels at once."""

from __future__ import annotations

import numpy as np
import pytest

from mm3dad.errors import DataError, ShapeError
from mm3dad.metrics import pixel_metrics
from mm3dad.metrics._ranking import check_maps
from mm3dad.metrics.aupro import rank_pixels
from mm3dad.metrics.streamed import _code, _decode, pixel_metrics_streamed, rank_streamed


def make(count, levels=None, sizes=((16, 20),), seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(count):
        size = sizes[number % len(sizes)]
        mask = np.zeros(size, dtype=bool)
        if number % 2:
            row, column = random.integers(0, size[0] - 4), random.integers(0, size[1] - 4)
            mask[row : row + 4, column : column + 3] = True
            mask[0, 0] = True
        value = (scale * (random.normal(size=size) + 1.5 * mask)).astype(np.float32)
        maps.append(value if levels is None else np.round(value * levels).astype(np.float32) / np.float32(levels))
        masks.append(mask)
    return maps, masks


def stream(maps, masks):
    return pixel_metrics_streamed(lambda position: (maps[position], masks[position]), len(maps))


@pytest.mark.parametrize(
    "options",
    [{}, {"levels": 2}, {"levels": 10}, {"sizes": ((16, 20), (5, 7), (31, 8))}, {"scale": 1e-30}, {"scale": 1e4}],
    ids=["all differ", "few levels", "some ties", "sizes", "tiny", "large"],
)
def test_the_same_numbers_as_from_all_pixels_at_once(options):
    for count, seed in ((2, 0), (7, 1), (20, 2)):
        maps, masks = make(count, seed=seed, **options)
        expected, found = pixel_metrics(maps, masks), stream(maps, masks)
        assert found.pop("notes") == expected.pop("notes") == {}
        assert found == pytest.approx(expected, rel=1e-12)


def test_the_same_counts_and_the_same_scores_at_every_rank():
    maps, masks = make(6, levels=4)
    whole = rank_pixels(*check_maps(maps, masks))
    found = rank_streamed(lambda position: (maps[position], masks[position]), 6)
    assert len(found.negatives) == len(whole.negatives)
    for name in ("positives", "above", "reached"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))
    ranks = np.arange(len(whole.negatives))
    assert np.array_equal(found.negatives[ranks], whole.negatives)


def test_codes_keep_the_order_and_the_value():
    values = np.array([-np.finfo(np.float32).max, -2.5, -1e-45, -0.0, 0.0, 1e-45, 1e-30, 1.0, 1.0000001, 3e38], dtype=np.float32)
    codes = _code(values)
    assert (np.diff(codes) >= 0).all() and codes[3] == codes[4] and (np.delete(np.diff(codes), 3) > 0).all()
    assert np.array_equal(_decode(codes), values)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_maps(value):
    maps, masks = make(4)
    maps = [np.full_like(one, value) for one in maps]
    expected, found = pixel_metrics(maps, masks), stream(maps, masks)
    assert found["pixel_auroc"] == 0.5 and found.pop("notes") == expected.pop("notes") == {}
    assert found == pytest.approx(expected)


def test_without_defects_or_without_normal_pixels_the_reason_is_given():
    for fill in (False, True):
        maps, masks = make(3)
        masks = [np.full_like(mask, fill) for mask in masks]
        expected, found = pixel_metrics(maps, masks), stream(maps, masks)
        assert found == expected and found["notes"]


def test_what_is_refused():
    maps, masks = make(2)
    with pytest.raises(ShapeError, match="at least one map, got none"):
        stream([], [])
    with pytest.raises(ShapeError, match=r"map 1 must be \(H, W\) and its mask of the same size"):
        stream(maps, [masks[0], masks[1][:3]])
    with pytest.raises(DataError, match="map 0 must be finite, got 1 NaN"):
        broken = maps[0].copy()
        broken[2, 2] = np.nan
        stream([broken, maps[1]], masks)
    with pytest.raises(ShapeError, match="map 0 must be float32 to be read piece by piece, got float64; use pixel_metrics"):
        stream([maps[0].astype(np.float64), maps[1]], masks)
