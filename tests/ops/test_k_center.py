"""Greedy k-centre: the fast forms against the plain algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import k_center
from mm3dad.ops._native import native_kernels
from mm3dad.ops.k_center import pick_centers, pick_centers_plain, pick_centers_reference


@pytest.fixture(params=[0, k_center.FEW], scope="module", autouse=True)
def few(request):
    """The lazy kernel on small inputs, too, and the plain one that is really taken there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(k_center, "FEW", request.param)
        yield request.param


def greedy_reference(rows, count, start):
    """Textbook greedy choice: one row at a time, against all chosen rows."""
    rows = rows.double().numpy()
    chosen = [start]
    while len(chosen) < count:
        nearest = [min(((row - rows[c]) ** 2).sum() for c in chosen) for row in rows]
        left = [index for index in range(len(rows)) if index not in chosen]
        chosen.append(max(left, key=lambda index: (nearest[index], -index)))
    return chosen


@given(st.integers(0, 10**6), st.integers(1, 14), st.integers(1, 25), st.booleans())
def test_equals_the_textbook(seed, width, number, lattice):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(number, width, generator=generator)
    # A coarse lattice is all ties and duplicates.
    rows = (rows * 3).round() if lattice else rows
    count, start = seed % number + 1, seed % 7 % number
    expected = greedy_reference(rows, count, start)
    assert pick_centers(rows, count, start).tolist() == expected
    assert pick_centers_plain(rows, count, start).tolist() == expected


@pytest.mark.parametrize("width", [2, 3, 4, 20])
@pytest.mark.parametrize("kind", ["noise", "clusters", "lattice", "offset"])
def test_fast_forms_equal_the_plain_one(width, kind, monkeypatch):
    monkeypatch.setattr(k_center, "BLOCK", 16)  # many rounds from few rows
    rows = torch.randn(270, width, generator=torch.Generator().manual_seed(width))
    if kind == "clusters":
        rows = rows * 0.01 + rows[:9].repeat(30, 1)
    if kind == "lattice":
        rows = rows.round()
    if kind == "offset":
        rows = (rows * 0.01 + 1000).float()
    assert torch.equal(pick_centers(rows, 200, 3), pick_centers_plain(rows, 200, 3))


def make_rows(kind, number=600, width=40):
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(number, width, generator=generator)
    groups = torch.randint(12, (number,), generator=generator)
    return {
        "noise": rows,
        "clusters": rows * 0.05 + 4 * torch.randn(12, width, generator=generator)[groups],
        "few directions": rows[:, :4] @ torch.randn(4, width, generator=generator) + 1e-3 * rows,
        "duplicates": rows[groups],
        "ties": (rows[:, :3].round() @ torch.eye(3, width)) + (groups % 2)[:, None],
        "constant": torch.ones(number, width),
        "wide ties": rows.round(),
        "far away": (rows * 0.01 + 1e4).float(),
        "noise far away": rows + 1e4,
        "large": rows * 1e25,
        "small": rows * 1e-25,
        "at the upper limit": torch.where(rows[:, :1] > 0.8, -3.3e38, 3.3e38) * (1 - 0.01 * torch.rand(rows.shape, generator=generator)),
        "needs float64": rows.double() / 3,
    }[kind]


KINDS = ["noise", "clusters", "few directions", "duplicates", "ties", "wide ties", "constant"]
KINDS += ["far away", "noise far away", "large", "small", "at the upper limit", "needs float64"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 9, 150, 600])
def test_picks_of_every_kind_of_rows_are_the_plain_ones(kind, count):
    rows = make_rows(kind)
    picks = pick_centers(rows, count, 17)
    assert torch.equal(picks, pick_centers_plain(rows, count, 17))
    assert len(picks.unique()) == count


@given(st.integers(0, 10**6), st.integers(40, 140))
def test_squares_at_the_lower_limit_of_float32_rule_nothing_out(seed, number):
    # Most of these squares lie between zero and the least float32.
    rows = torch.zeros(number, 4)
    rows[:, 0] = torch.randint(400, (number,), generator=torch.Generator().manual_seed(seed)) * 7.8e-24
    assert torch.equal(pick_centers(rows, number // 2), pick_centers_plain(rows, number // 2))


@pytest.mark.parametrize("kind", ["noise", "clusters", "duplicates"])
def test_threads_do_not_matter(kind, monkeypatch):
    rows = make_rows(kind, number=30000)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(pick_centers(rows, 200))
    assert torch.equal(*found)


def test_rows_that_can_be_ruled_out_change_nothing(ops_path):
    # Large and clustered enough for the lazy form of the kernel, its shared steps and the tidying of its clusters.
    rows = make_rows("clusters", number=20000, width=48)
    rows[::7] = rows[3]
    picks = pick_centers(rows, 700)
    if ops_path == "native":
        assert torch.equal(picks, native_kernels().k_center_plain(rows, 700, 0, 1))
        assert torch.equal(picks, pick_centers_reference(rows, 700))
    assert len(picks.unique()) == 700


def test_dtype_and_layout_do_not_matter():
    rows = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    expected = pick_centers(rows, 100)
    assert torch.equal(pick_centers(rows.double(), 100), expected)
    assert torch.equal(pick_centers(rows.T.contiguous().T, 100), expected)
    assert torch.equal(pick_centers(rows.clone().requires_grad_(), 100), expected)


@pytest.mark.parametrize("width", [3, 16])
def test_duplicates_come_last_in_order(width):
    rows = torch.zeros(6, width)
    rows[4] = 1
    assert pick_centers(rows, 6, 2).tolist() == [2, 4, 0, 1, 3, 5]


@pytest.mark.gpu
@pytest.mark.parametrize("width", [3, 24])
def test_same_on_the_gpu(width):
    rows = torch.randn(3000, width, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    assert torch.equal(pick_centers(rows.cuda(), 500).cpu(), pick_centers(rows, 500))


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        (np.zeros((4, 3)), ShapeError, "rows must be a torch tensor.*ndarray"),
        (torch.zeros(4), ShapeError, r"rows must be \(N, D\), got \(4,\)"),
        (torch.zeros(4, 0), ShapeError, r"got \(4, 0\)"),
        (torch.zeros(0, 3), ShapeError, "at least 1 rows, got 0"),
        (torch.zeros(4, 3, dtype=torch.int64), ShapeError, "floating point, got torch.int64"),
        (torch.full((4, 3), torch.nan), ShapeError, "finite"),
        (torch.full((4, 3), torch.inf), ShapeError, "finite"),
    ],
)
def test_bad_rows(rows, error, text):
    with pytest.raises(error, match=text):
        pick_centers(rows, 1)


@pytest.mark.parametrize(("count", "start"), [(0, 0), (5, 0), (2, 4), (2, -1), (1.5, 0), (True, 0)])
def test_bad_numbers(count, start):
    with pytest.raises(ConfigError, match="must be"):
        pick_centers(torch.zeros(4, 3), count, start)
