"""Least distances of pairs of samples against all distances."""

from __future__ import annotations

import pytest
import torch

from mm3dad.ops.pair_minima import RoughPairs, bfloat16_slack, pair_minima


def draw(rows, pairs, width, channels, dtype, offset=0.0):
    generator = torch.Generator().manual_seed(rows + width)
    own = torch.randn(rows, channels, generator=generator, dtype=dtype) + offset
    return own, torch.randn(pairs, width, channels, generator=generator, dtype=dtype) + offset


def measure_all(own, theirs):
    every = (own[None, :, None].double() - theirs[:, None].double()).square().sum(3)
    return every.amin(2), every.amin(1)


def run(own, theirs, product=None):
    product = -2 * own @ theirs.flatten(0, 1).T if product is None else product
    return pair_minima(product, own, theirs, own.square().sum(1), theirs.square().sum(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 3), (4, 3, 17), (3, 2, 33), (37, 2, 70)])
def test_equals_all_distances(shape, dtype):
    own, theirs = draw(*shape, 6, dtype)
    forward, backward = run(own, theirs)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for found, expected in zip((forward, backward), measure_all(own, theirs), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0)
    assert forward.dtype == dtype


def test_small_distances_keep_their_digits():
    own, theirs = draw(9, 2, 12, 8, torch.float32)
    theirs[1, 3:] = own + 1e-4 * draw(9, 1, 1, 8, torch.float32, 1.0)[0]
    forward, backward = run(own, theirs)
    expected = measure_all(own, theirs)
    torch.testing.assert_close(forward.double(), expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(backward.double(), expected[1], rtol=1e-5, atol=0)


def test_strided_products_and_half_precision():
    own, theirs = draw(5, 2, 4, 3, torch.float64)
    product = -2 * own @ theirs.flatten(0, 1).T
    expected = run(own, theirs)
    found = run(own, theirs, torch.cat([product, product], dim=1)[:, : product.shape[1]])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    found = run(own.half(), theirs.half())
    torch.testing.assert_close(found[0].double(), expected[0], atol=2e-2, rtol=0)
    torch.testing.assert_close(found[1].double(), expected[1], atol=2e-2, rtol=0)


def test_duplicates_and_equal_rows():
    own, theirs = torch.ones(7, 2), torch.ones(2, 9, 2)
    forward, backward = run(own, theirs)
    assert forward.shape == (2, 7) and backward.shape == (2, 9)
    assert not forward.any() and not backward.any()


needs_units = pytest.mark.skipif(not RoughPairs.suit(torch.zeros(1)), reason="this processor has no matrix units for bfloat16")


def draw_set(samples, patches, channels, spread=1.0):
    """Patches near common prototypes, as far from them as `spread`."""
    generator = torch.Generator().manual_seed(patches)
    features = torch.randn(patches, channels, generator=generator)
    features = features + spread * torch.randn(samples, patches, channels, generator=generator)
    return features - features.flatten(0, 1).mean(0)


@needs_units
@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-3])
@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 16, 32), (4, 33, 65), (3, 100, 7), (2, 64, 300)])
def test_rough_products_lead_to_the_same_distances(shape, spread):
    """From far rows, of which one may be nearest, to rows so near each other that the product tells little; tiles full and ragged."""
    features = draw_set(*shape, spread)
    pairs = torch.combinations(torch.arange(len(features)))
    forward, backward, done = RoughPairs(features, features.square().sum(2), candidates=1000).measure(pairs)
    assert done.all()
    for (i, j), there, back in zip(pairs.tolist(), forward, backward, strict=True):
        expected = measure_all(features[i], features[j][None])
        torch.testing.assert_close(there.double(), expected[0][0], rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(back.double(), expected[1][0], rtol=1e-5, atol=1e-12)


@needs_units
def test_pairs_with_too_many_candidates_are_left(ops_path):
    features = draw_set(3, 40, 64)
    features[2] = features[1, :1] + 1e-6 * features[2]  # alike everywhere: each of its patches may be the nearest
    done = RoughPairs(features, features.square().sum(2)).measure(torch.tensor([[0, 1], [1, 2], [0, 2]]))[2]
    assert done.tolist() == ([True, False, False] if ops_path == "native" else [True] * 3)


@needs_units
def test_rough_products_leave_the_units_as_they_were():
    """torch keeps its tiles' setting from product to product."""
    features = draw_set(4, 50, 96)
    before = features[0].bfloat16() @ features[1].bfloat16().T
    found = {}
    for threads in (1, 2, 5):
        torch_threads = torch.get_num_threads()
        torch.set_num_threads(threads)
        found[threads] = RoughPairs(features, features.square().sum(2)).measure(torch.combinations(torch.arange(4)))
        torch.set_num_threads(torch_threads)
        assert torch.equal(features[0].bfloat16() @ features[1].bfloat16().T, before)
    for threads in (2, 5):
        assert all(torch.equal(one, other) for one, other in zip(found[1], found[threads], strict=True))


def test_the_slack_bounds_the_error():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 384, generator=generator) * torch.rand(200, 1, generator=generator)
    rounded = features.bfloat16()
    product = -2 * (rounded.float() @ rounded.float().T).double()
    error = (product + 2 * features.double() @ features.double().T).abs()
    length = features.double().norm(dim=1)
    share = (error / (length[:, None] * length)).max()
    assert share <= bfloat16_slack(features, rounded) <= 20 * share


def test_threads_change_nothing(monkeypatch):
    own, theirs = draw(101, 2, 67, 5, torch.float32)
    found = {}
    for threads in (1, 2, 200):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found[threads] = run(own, theirs)
    for threads in (2, 200):
        assert all(torch.equal(one, other) for one, other in zip(found[1], found[threads], strict=True))
