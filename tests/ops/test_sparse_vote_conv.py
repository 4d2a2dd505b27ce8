"""Laws of the voting convolution: dense convolution on every touched cell, cost by occupied cells alone, empty cells stay empty."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import sparse_vote_conv


def make_grid(count, side=10, channels=3, seed=0, dtype=torch.float64):
    """Distinct cells inside a cube with room for votes at its border, and values."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(side**3, generator=generator)[:count]
    cells = torch.stack([flat // side**2, flat // side % side, flat % side], dim=1)
    return cells, torch.randn(count, channels, generator=generator, dtype=dtype)


def make_layer(channels, out, side=3, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, channels, side, side, side, generator=generator, dtype=dtype)


def to_dense(cells, values, side, pad):
    volume = values.new_zeros(values.shape[1], *(side + 2 * pad,) * 3)
    x, y, z = (cells + pad).unbind(1)
    volume[:, x, y, z] = values.T
    return volume


def convolve(cells, values, weight, bias, side):
    """Dense conv3d of the same cells, with room on each side; returns the volume and the room."""
    pad = weight.shape[-1]
    return F.conv3d(to_dense(cells, values, side, pad)[None], weight, bias, padding=weight.shape[-1] // 2)[0], pad


def read(volume, cells, pad):
    x, y, z = (cells + pad).unbind(1)
    return volume[:, x, y, z].T


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_equals_dense_convolution_on_every_touched_cell(kernel, count):
    cells, values = make_grid(count)
    weight, bias = make_layer(3, 4, kernel), torch.tensor([-0.1, 0.2, 0.0, -3.0], dtype=torch.float64)
    found = sparse_vote_conv(cells, values, weight, bias)
    volume, pad = convolve(cells, values, weight, bias, 10)
    torch.testing.assert_close(found.values, read(volume, found.cells, pad))
    touched = torch.zeros(volume.shape[1:], dtype=torch.bool)
    touched[tuple((found.cells + pad).unbind(1))] = True
    occupied = to_dense(cells, torch.ones(count, 1, dtype=torch.float64), 10, pad)[None]
    votes = F.conv3d(occupied, torch.ones(1, 1, *(kernel,) * 3, dtype=torch.float64), padding=kernel // 2)
    assert torch.equal(touched, votes[0, 0] > 0.5)


def test_empty_cells_stay_empty_with_a_bias_not_above_zero_and_only_then():
    cells, values = make_grid(40)
    weight = make_layer(3, 4)
    for shift, is_same in ((-0.3, True), (0.0, True), (0.1, False)):
        bias = torch.full((4,), shift, dtype=torch.float64)
        found = sparse_vote_conv(cells, values, weight, bias)
        volume, pad = convolve(cells, values, weight, bias, 10)
        whole = to_dense(found.cells, found.values.relu(), 10, pad)
        assert torch.allclose(whole, volume.relu()) == is_same
        untouched = to_dense(found.cells, torch.ones(len(found.cells), 1), 10, pad)[0] == 0
        assert bool((volume[:, untouched].relu() > 0).all()) != is_same


def test_operations_follow_the_law_and_forget_the_volume():
    weight = make_layer(6, 8)
    for count in (100, 200, 400):
        for side in (10, 40, 1000):
            cells, values = make_grid(count, side=min(side, 40), channels=6)
            cells = cells * max(1, side // 40)
            assert sparse_vote_conv(cells, values, weight).operations == count * 27 * 6 * 8


def test_gradients():
    cells, values = make_grid(12, side=4, channels=2)
    weight, bias = make_layer(2, 3), torch.randn(3, dtype=torch.float64)
    leaves = [part.requires_grad_() for part in (values, weight, bias)]
    assert torch.autograd.gradcheck(lambda v, w, b: sparse_vote_conv(cells, v, w, b).values, leaves)
    loss = sparse_vote_conv(cells, *leaves).values.square().sum()
    found = torch.autograd.grad(loss, leaves)
    near = sparse_vote_conv(cells, values, weight).cells
    volume, pad = convolve(cells, values, weight, bias, 4)
    for one, other in zip(found, torch.autograd.grad(read(volume, near, pad).square().sum(), leaves), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("chosen", [None, "some", "elsewhere"])
def test_gradients_of_unsorted_cells_and_of_chosen_targets(chosen):
    cells, values = make_grid(30, side=5)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    cells, values = cells[order], values[order].requires_grad_()
    within = {None: None, "some": torch.cat([cells[::2], cells[:3] + 1, cells[:1] + 40]), "elsewhere": cells + 100}[chosen]
    weight, bias = make_layer(3, 4).requires_grad_(), torch.randn(4, dtype=torch.float64, requires_grad=True)
    found = sparse_vote_conv(cells, values, weight, bias, within)
    if chosen == "elsewhere":
        assert found.values.shape == (0, 4)
        found.values.sum().backward()
        assert not any(bool(part.grad.any()) for part in (values, weight, bias))
        return
    volume, pad = convolve(cells, values, weight, bias, 5)
    torch.testing.assert_close(found.values, read(volume, found.cells, pad))
    grads = torch.autograd.grad(found.values.square().sum(), (values, weight, bias))
    dense = torch.autograd.grad(read(volume, found.cells, pad).square().sum(), (values, weight, bias))
    for one, other in zip(grads, dense, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_native_equals_reference_with_any_number_of_threads(monkeypatch, dtype, gap):
    """Enough cells for several blocks of targets, channels that fill no register, votes for weights that go through several sums."""
    cells, values = make_grid(1500, side=22, channels=6)
    weight, bias = make_layer(6, 11, side=5), torch.randn(11, dtype=torch.float64)
    results = []
    for path, threads in (("reference", 1), ("native", 1), ("native", 2)):
        monkeypatch.setenv("MM3DAD_OPS", path)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            leaves = [part.to(dtype).requires_grad_() for part in (values, weight, bias)]
            found = sparse_vote_conv(cells, *leaves)
            grads = torch.autograd.grad(found.values.sin().sum(), leaves)
        finally:
            torch.set_num_threads(before)
        results.append([found.cells, found.values.detach(), *grads])
    for reference, one, two in zip(*results, strict=True):
        assert torch.equal(one, two) and one.dtype == reference.dtype
        scale = float(reference.abs().max())
        torch.testing.assert_close(one, reference, atol=gap * scale, rtol=0)


def test_no_second_derivative_is_passed_off(ops_path):
    cells, values = make_grid(5)
    weight = make_layer(3, 2).requires_grad_()
    (grad,) = torch.autograd.grad(sparse_vote_conv(cells, values, weight).values.square().sum(), weight, create_graph=True)
    if ops_path == "native":
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
    else:
        grad.sum().backward()


def test_order_of_cells_and_negative_coordinates_change_nothing():
    cells, values = make_grid(60)
    weight = make_layer(3, 4)
    found = sparse_vote_conv(cells, values, weight)
    order = torch.randperm(60)
    other = sparse_vote_conv(cells[order] - 500, values[order], weight)
    assert torch.equal(other.cells, found.cells - 500)
    torch.testing.assert_close(other.values, found.values)


def test_within_keeps_the_votes_for_chosen_cells():
    cells, values = make_grid(60)
    weight, bias = make_layer(3, 4), torch.ones(4, dtype=torch.float64)
    full = sparse_vote_conv(cells, values, weight, bias)
    kept = sparse_vote_conv(cells, values, weight, bias, within=cells)
    rows = {tuple(cell): value for cell, value in zip(full.cells.tolist(), full.values, strict=True)}
    assert sorted(map(tuple, cells.tolist())) == list(map(tuple, kept.cells.tolist()))
    torch.testing.assert_close(kept.values, torch.stack([rows[tuple(cell)] for cell in kept.cells.tolist()]))
    far = torch.tensor([[900, 0, 0]])
    assert sparse_vote_conv(cells, values, weight, bias, within=far).cells.shape == (0, 3)
    assert sparse_vote_conv(cells, values, weight, bias, within=far[:0]).values.shape == (0, 4)


def test_no_cell():
    found = sparse_vote_conv(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3), make_layer(3, 4, dtype=torch.float32))
    assert found.cells.shape == (0, 3) and found.values.shape == (0, 4) and found.operations == 0


def test_bad_input():
    cells, values = make_grid(5)
    weight = make_layer(3, 4)
    for call, error, text in (
        (lambda: sparse_vote_conv(cells.float(), values, weight), ShapeError, r"cells must be \(M, 3\) int64"),
        (lambda: sparse_vote_conv(cells, values[:3], weight), ShapeError, "row for each of 5 cells, got 3"),
        (lambda: sparse_vote_conv(cells, values, weight[:, :2]), ShapeError, "weight must be"),
        (lambda: sparse_vote_conv(cells, values, make_layer(3, 4, 2)), ShapeError, "k odd"),
        (lambda: sparse_vote_conv(cells, values, weight, torch.zeros(3).double()), ShapeError, r"bias must be \(4,\), got \(3,\)"),
        (lambda: sparse_vote_conv(cells, values * torch.nan, weight), ShapeError, "finite"),
        (lambda: sparse_vote_conv(cells[[0, 0]], values[:2], weight), ConfigError, "distinct, got 2 of which 1"),
        (lambda: sparse_vote_conv(cells + 2**19, values, weight), ConfigError, "within"),
        (lambda: sparse_vote_conv(cells, values, weight, within=cells.int()), ShapeError, "within must be"),
    ):
        with pytest.raises(error, match=text):
            call()
