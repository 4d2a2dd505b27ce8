"""Exact search, held against distances written out."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, MissingPackageError
from mm3dad.memory import search
from mm3dad.memory.search import nearest_in_sample, nearest_rows


def make_rows(count, width=6, seed=0, copies=1):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return rows.repeat(copies, 1)


def measure(queries, rows):
    """Every distance, in float64."""
    return (queries.double()[:, None] - rows.double()[None]).norm(dim=2)


@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 8), st.integers(0, 5))
def test_the_nearest_row_is_the_nearest(queries, rows, width, seed):
    a, b = make_rows(queries, width, seed), make_rows(rows, width, seed + 100)
    distances, index = nearest_in_sample(a, b)
    expected = measure(a, b)
    torch.testing.assert_close(distances.double(), expected.amin(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(expected.gather(1, index[:, None])[:, 0], expected.amin(1), rtol=1e-5, atol=1e-6)


def test_small_distances_keep_their_digits_far_from_the_origin():
    rows = make_rows(50) + 100
    queries = rows[:20] + 1e-3
    exact = measure(queries, rows).amin(1)
    for found, _ in (nearest_rows(queries, rows, 1), nearest_rows(queries, rows, 1, "faiss")):
        torch.testing.assert_close(found[:, 0].double(), exact, rtol=1e-4, atol=0)


def test_blocks_of_rows_join_without_a_seam(monkeypatch):
    queries, rows = make_rows(9, seed=1), make_rows(30)
    allowed = torch.rand(9, 30, generator=torch.Generator().manual_seed(2)) < 0.5
    expected = [*nearest_in_sample(queries, rows), *nearest_in_sample(queries, rows, allowed)]
    monkeypatch.setattr(search, "ROW_BLOCK", 7)
    found = [*nearest_in_sample(queries, rows), *nearest_in_sample(queries, rows, allowed)]
    torch.testing.assert_close(found[::2], expected[::2])
    assert all(torch.equal(a, b) for a, b in zip(found[1::2], expected[1::2], strict=True))


def test_rows_out_of_reach_are_not_found():
    queries, rows = make_rows(5, seed=1), make_rows(8)
    allowed = torch.zeros(5, 8, dtype=torch.bool)
    allowed[0, 3] = allowed[1, 2] = allowed[1, 5] = True
    distances, index = nearest_in_sample(queries, rows, allowed)
    expected = measure(queries, rows).masked_fill(~allowed, torch.inf)
    torch.testing.assert_close(distances.double(), expected.amin(1))
    assert index[:2].tolist() == expected[:2].argmin(1).tolist() and bool(distances[2:].isinf().all())


@given(st.integers(1, 15), st.integers(1, 40), st.integers(1, 3), st.integers(0, 5), st.data())
def test_faiss_finds_what_torch_finds(queries, rows, copies, seed, data):
    a, b = make_rows(queries, seed=seed), make_rows(rows, seed=seed + 100, copies=copies)
    k = data.draw(st.integers(1, min(len(b), 12)))
    ours, theirs = nearest_rows(a, b, k), nearest_rows(a, b, k, "faiss")
    torch.testing.assert_close(ours[0].double(), measure(a, b).topk(k, largest=False).values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    if copies == 1:
        assert torch.equal(ours[1], theirs[1])
    assert all(len(set(row)) == k for row in theirs[1].tolist())  # duplicates are found as rows of their own


def test_more_neighbours_than_rows_is_an_error():
    for backend in ("torch", "faiss"):
        with pytest.raises(ConfigError, match="k must be 1 to 3, got 4"):
            nearest_rows(make_rows(2), make_rows(3), 4, backend)


def test_faiss_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackageError, match="pip install faiss-cpu, or use search=torch"):
        nearest_rows(make_rows(2), make_rows(3), 1, "faiss")
