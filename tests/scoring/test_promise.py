from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.scoring.promise import (
    area_threshold,
    mean_interval,
    normals_needed,
    order_statistic_interval,
    p_value,
    proportion_interval,
)


@pytest.mark.parametrize(("rate", "average", "sure"), [(0.01, 99, 299), (0.05, 19, 59), (0.5, 1, 5), (0.1, 9, 29), (0.9, 1, 2)])
def test_normals_needed_for_a_rate(rate, average, sure):
    assert normals_needed(rate) == average and normals_needed(rate, 0.95) == sure
    # the definitions: there is an order statistic, and the largest of n exceeds the quantile with 95 %
    assert math.ceil((average + 1) * (1 - rate) - 1e-9) <= average
    assert (1 - rate) ** sure <= 0.05 < (1 - rate) ** (sure - 1)


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (3, 20), (20, 20), (1, 1), (0, 1), (1, 299)])
def test_proportion_interval_is_the_inversion_of_the_binomial(hits, count):
    low, high = proportion_interval(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    if hits:
        assert binom.sf(hits - 1, count, low) == pytest.approx(0.025, rel=1e-6)
    if hits < count:
        assert binom.cdf(hits, count, high) == pytest.approx(0.025, rel=1e-6)


def test_order_statistic_interval_follows_from_counting():
    """The k-th smallest of n exceeds quantile 1 - r when at most k - 1 of n lie below it: a binomial, whatever the distribution."""
    low, high = order_statistic_interval(18, 20)
    assert 1 - binom.cdf(17, 20, 1 - low) == pytest.approx(1 - 0.025, rel=1e-6)
    assert 1 - binom.cdf(17, 20, 1 - high) == pytest.approx(0.025, rel=1e-6)
    assert low < beta.mean(3, 18) < high


@pytest.mark.parametrize("count", [19, 60, 200])
def test_the_promised_rate_lies_in_its_interval_as_often_as_promised(count):
    """Simulation: draw calibration sets, take the threshold, compare the interval with its true rate (exact: the normal tail)."""
    random = np.random.default_rng(count)
    place = math.ceil((count + 1) * 0.95 - 1e-9)
    low, high = order_statistic_interval(place, count)
    uniform = np.sort(random.random((4000, count)), 1)[:, place - 1]  # the probability integral transform of any continuous score
    rates = 1 - uniform
    assert np.mean((rates >= low) & (rates <= high)) == pytest.approx(0.95, abs=0.015)
    assert rates.mean() <= 0.05 + 3 * rates.std() / 4000**0.5


def test_p_values_of_normal_samples_are_valid():
    random = np.random.default_rng(0)
    found = np.array([p_value(random.normal(), sorted(random.normal(size=19))) for _ in range(4000)])
    for share in (0.05, 0.1, 0.5):
        assert np.mean(found <= share) == pytest.approx(share, abs=0.03)
    assert p_value(9.0, [1.0, 2.0, 3.0]) == 0.25 and p_value(2.0, [1.0, 2.0, 3.0]) == 0.75 and p_value(-1.0, [0.0]) == 1.0


def slow_area(maps, area):
    """The lowest of all values that is not exceeded too much."""
    for value in sorted(torch.cat([one.flatten() for one in maps]).tolist()):
        if sum(float((one > value).float().mean()) for one in maps) / len(maps) <= area + 1e-9:
            return value
    raise AssertionError


@pytest.mark.parametrize("area", [0.001, 0.02, 0.3, 0.9])
def test_area_threshold_is_that_of_the_definition(area):
    generator = torch.Generator().manual_seed(3)
    maps = [
        torch.rand(size, generator=generator).mul(20).round() / 20 * scale for size, scale in (((8, 9), 1), ((5, 5), 3), ((16, 4), 0.5))
    ]
    threshold, shares = area_threshold(maps, area)
    assert threshold == pytest.approx(slow_area(maps, area))
    assert shares == pytest.approx([float((one > threshold).float().mean()) for one in maps])
    assert sum(shares) / 3 <= area + 1e-9


def test_area_threshold_at_the_edges():
    assert area_threshold([torch.ones(4, 4)], 0.01) == (1.0, [0.0])
    assert area_threshold([torch.tensor([[2.0]])], 0.5) == (2.0, [0.0])
    with pytest.raises(DataError, match="got none; add samples"):
        area_threshold([], 0.1)
    with pytest.raises(ShapeError, match=r"map must be a floating, non-empty \(H, W\)"):
        area_threshold([torch.ones(3)], 0.1)
    with pytest.raises(DataError, match="finite"):
        area_threshold([torch.full((2, 2), math.nan)], 0.1)
    with pytest.raises(ConfigError, match="area must lie between 0 and 1"):
        area_threshold([torch.ones(2, 2)], 1.0)


def test_the_area_promised_lies_in_its_interval():
    """Simulation: 40 parts of very different noise; the true mean area of a threshold is known from 2,000 others."""
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        return torch.rand(count, 24, 24, generator=generator) * (0.5 + torch.rand(count, 1, 1, generator=generator))

    reference = draw(2000)
    hits = 0
    for _ in range(100):
        threshold, shares = area_threshold(list(draw(40)), 0.05)
        low, high = mean_interval(shares, draws=400)
        hits += low <= float((reference > threshold).double().mean()) <= high
    assert hits >= 85  # 95 in the limit; a bootstrap over 40 samples and a threshold chosen on them lose a few


def test_mean_interval():
    assert mean_interval([0.2]) is None
    assert mean_interval([0.5] * 9) == (0.5, 0.5)
    low, high = mean_interval(np.arange(100) / 99)
    assert low == pytest.approx(0.5 - 1.96 * 0.0292, abs=0.01) and high == pytest.approx(0.5 + 1.96 * 0.0292, abs=0.01)


@pytest.mark.parametrize("value", [0, 1, -0.1, 2, math.nan, "x", True])
def test_a_share_out_of_range_is_an_error(value):
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        normals_needed(value)


def test_a_proportion_of_nothing_is_an_error():
    with pytest.raises(DataError, match="got 0 of 0"):
        proportion_interval(0, 0)
