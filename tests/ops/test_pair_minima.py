"""Least distances of pairs of samples against all distances."""

from __future__ import annotations

import pytest
import torch

from mm3dad.ops.pair_minima import bfloat16_slack, pair_minima


def draw(rows, pairs, width, channels, dtype, offset=0.0):
    generator = torch.Generator().manual_seed(rows + width)
    own = torch.randn(rows, channels, generator=generator, dtype=dtype) + offset
    return own, torch.randn(pairs, width, channels, generator=generator, dtype=dtype) + offset


def measure_all(own, theirs):
    every = (own[None, :, None].double() - theirs[:, None].double()).square().sum(3)
    return every.amin(2), every.amin(1)


def run(own, theirs, product=None, slack=None):
    product = -2 * own @ theirs.flatten(0, 1).T if product is None else product
    return pair_minima(product, own, theirs, own.square().sum(1), theirs.square().sum(2), slack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 3), (4, 3, 17), (3, 2, 33), (37, 2, 70)])
def test_equals_all_distances(shape, dtype):
    own, theirs = draw(*shape, 6, dtype)
    forward, backward, measured = run(own, theirs)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for found, expected in zip((forward, backward), measure_all(own, theirs), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0)
    assert forward.dtype == dtype and measured >= max(forward.shape[1], backward.shape[1])


def test_small_distances_keep_their_digits():
    own, theirs = draw(9, 2, 12, 8, torch.float32)
    theirs[1, 3:] = own + 1e-4 * draw(9, 1, 1, 8, torch.float32, 1.0)[0]
    forward, backward, _ = run(own, theirs)
    expected = measure_all(own, theirs)
    torch.testing.assert_close(forward.double(), expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(backward.double(), expected[1], rtol=1e-5, atol=0)


def test_strided_products_and_half_precision():
    own, theirs = draw(5, 2, 4, 3, torch.float64)
    product = -2 * own @ theirs.flatten(0, 1).T
    expected = run(own, theirs)
    found = run(own, theirs, torch.cat([product, product], dim=1)[:, : product.shape[1]])
    assert all(torch.equal(one, other) for one, other in zip(found[:2], expected[:2], strict=True))
    found = run(own.half(), theirs.half())
    torch.testing.assert_close(found[0].double(), expected[0], atol=2e-2, rtol=0)
    torch.testing.assert_close(found[1].double(), expected[1], atol=2e-2, rtol=0)


def test_duplicates_and_equal_rows():
    own, theirs = torch.ones(7, 2), torch.ones(2, 9, 2)
    forward, backward, measured = run(own, theirs)
    assert forward.shape == (2, 7) and backward.shape == (2, 9)
    assert not forward.any() and not backward.any() and measured > 0


@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-3, 0.0])
def test_a_rough_product_leads_to_the_same_distances(spread):
    """From far rows, of which one may be nearest, to rows so near each other that the product tells nothing."""
    generator = torch.Generator().manual_seed(3)
    own = torch.randn(41, 64, generator=generator)
    theirs = own[torch.randint(41, (3, 70), generator=generator)] + spread * torch.randn(3, 70, 64, generator=generator)
    everything = torch.cat([own, theirs.flatten(0, 1)])
    slack = bfloat16_slack(everything, everything.bfloat16())
    product = (own.bfloat16() * -2) @ theirs.flatten(0, 1).bfloat16().T
    for found, expected in zip(run(own, theirs, product, slack)[:2], measure_all(own, theirs), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-12)


def test_the_slack_bounds_the_error():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 384, generator=generator) * torch.rand(200, 1, generator=generator)
    rounded = features.bfloat16()
    product = ((rounded * -2) @ rounded.T).double()
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
        assert all(torch.equal(one, other) for one, other in zip(found[1][:2], found[threads][:2], strict=True))
