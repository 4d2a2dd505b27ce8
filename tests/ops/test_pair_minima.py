"""Least distances of pairs of samples against all distances."""

from __future__ import annotations

import pytest
import torch

from mm3dad.ops.pair_minima import pair_minima


def draw(rows, pairs, width, channels, dtype, offset=0.0):
    generator = torch.Generator().manual_seed(rows + width)
    own = torch.randn(rows, channels, generator=generator, dtype=dtype) + offset
    return own, torch.randn(pairs, width, channels, generator=generator, dtype=dtype) + offset


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 3), (4, 3, 17), (3, 2, 33), (37, 2, 70)])
def test_equals_all_distances(shape, dtype):
    own, theirs = draw(*shape, 6, dtype)
    product = -2 * own @ theirs.flatten(0, 1).T
    forward, backward = pair_minima(product, own.square().sum(1), theirs.square().sum(2))
    every = (own[None, :, None].double() - theirs[:, None].double()).square().sum(3)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(forward.double(), every.amin(2), atol=tolerance, rtol=0)
    torch.testing.assert_close(backward.double(), every.amin(1), atol=tolerance, rtol=0)
    assert forward.dtype == dtype


def test_half_precision_and_views():
    own, theirs = draw(5, 2, 4, 3, torch.float64)
    product = -2 * own @ theirs.flatten(0, 1).T
    expected = pair_minima(product, own.square().sum(1), theirs.square().sum(2))
    strided = torch.cat([product, product], dim=1)[:, : product.shape[1]]
    for given in (strided, product.half()):
        found = pair_minima(given, own.square().sum(1).to(given), theirs.square().sum(2).to(given))
        torch.testing.assert_close(found[0].double(), expected[0], atol=2e-2, rtol=0)
        torch.testing.assert_close(found[1].double(), expected[1], atol=2e-2, rtol=0)


def test_duplicates_and_equal_rows():
    forward, backward = pair_minima(torch.full((7, 18), -2.0), torch.ones(7), torch.ones(2, 9))
    assert forward.shape == (2, 7) and backward.shape == (2, 9)
    assert not forward.any() and not backward.any()


def test_threads_change_nothing(monkeypatch):
    own, theirs = draw(101, 2, 67, 5, torch.float32)
    product, norms = -2 * own @ theirs.flatten(0, 1).T, (own.square().sum(1), theirs.square().sum(2))
    found = {}
    for threads in (1, 2, 200):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found[threads] = pair_minima(product, *norms)
    for threads in (2, 200):
        assert all(torch.equal(one, other) for one, other in zip(found[1], found[threads], strict=True))
