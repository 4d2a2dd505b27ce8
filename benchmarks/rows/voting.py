"""The voting convolution beside the dense one of torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv3d

from benchmarks.harness import Growth, Peer, Row
from mm3dad.ops import sparse_vote_conv

CHANNELS = 8  # of Vote3Deep's hidden layers
OCCUPANCY = 0.05  # below it the dense form is to be beaten
SIDES = ("mm3dad", "mm3dad, forward and backward")


def make_surface(count: int) -> Tensor:
    """Return about `count` cells of a bent sheet, as a cloud of a surface fills them: one per column."""
    side = round(count**0.5)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    height = (0.1 * side * torch.sin(6 * row / side) * torch.cos(5 * column / side)).long()
    return torch.stack([row.flatten(), column.flatten(), height.flatten()], dim=1)


def make_scatter(count: int, occupancy: float) -> Tensor:
    """Return cells anywhere in a cube, that share of it: hardly two side by side, the worst case, for each reaches 27 others."""
    side = round((count / occupancy) ** (1 / 3))
    flat = torch.randperm(side**3, generator=torch.Generator().manual_seed(0))[:count].sort().values
    return torch.stack([flat // side**2, flat // side % side, flat % side], dim=1)


def make_inputs(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return values of the cells, a kernel of side 3 and a bias."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, 3, generator=generator) / (27 * CHANNELS) ** 0.5
    return torch.rand(len(cells), CHANNELS, generator=generator), weight, -torch.rand(CHANNELS, generator=generator) / 10


def run_ours(cells: Tensor, values: Tensor, weight: Tensor, bias: Tensor, backward: bool) -> Any:
    """Convolve; with `backward` also the gradients of values, kernel and bias."""
    if not backward:
        with torch.inference_mode():
            return sparse_vote_conv(cells, values, weight, bias)
    leaves = [part.detach().requires_grad_() for part in (values, weight, bias)]
    found = sparse_vote_conv(cells, *leaves)
    return found, torch.autograd.grad(found.values.sum(), leaves)


def run_dense(volume: Tensor, weight: Tensor, bias: Tensor, backward: bool) -> Any:
    """Convolve the whole box, the cells already in it."""
    if not backward:
        with torch.inference_mode():
            return conv3d(volume, weight, bias, padding=1)
    leaves = [part.detach().requires_grad_() for part in (volume, weight, bias)]
    found = conv3d(*leaves, padding=1)
    return found, torch.autograd.grad(found.sum(), leaves)


def why_no_open3d() -> str:
    """Say why open3d's sparse convolution is no peer in this row."""
    try:
        import open3d.ml.torch  # noqa: F401
    except Exception as error:  # open3d raises a plain one where its build does not fit torch's
        return f"cannot be called here ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return "is not wired up in this row"


def make_row(make: Callable[[int], Tensor], what: str, backward: bool, quick: bool) -> Row:
    """8 to 8 channels, kernel of side 3, in a box that the cells fill to less than 5 %."""
    cells = make(500 if quick else 40000)
    cells = cells - cells.amin(0)
    values, weight, bias = make_inputs(cells)
    box = (cells.amax(0) + 1).tolist()
    box[2] = max(box[2], round(1.02 * len(cells) / (OCCUPANCY * box[0] * box[1])))
    volume = torch.zeros(1, CHANNELS, *box)
    place = tuple(cells.T)
    volume[0][:, *place] = values.T
    share = len(cells) / (box[0] * box[1] * box[2])

    def differ(ours: Any, theirs: Any) -> float:
        found, dense = (ours[0], theirs[0].detach()) if backward else (ours, theirs)
        inside = ((found.cells >= 0) & (found.cells < torch.tensor(box))).all(1)
        return float((found.values.detach()[inside] - dense[0][:, *found.cells[inside].T].T).abs().max())

    def time_ours(side: str, size: int) -> Any:
        grown = make_surface(size)
        return partial(run_ours, grown, *make_inputs(grown), side != "mm3dad")

    sizes = [100, 400, 1600] if quick else [10**3, 10**4, 10**5, 10**6]
    return Row(
        work=f"voting convolution 8 -> 8 channels, 3 x 3 x 3, forward{' and all gradients' if backward else ''}",
        inputs=f"{len(cells)} cells {what}, {share:.1%} of a box of {' x '.join(map(str, box))}, float32. "
        f"open3d's sparse convolution {why_no_open3d()}",
        ours=partial(run_ours, cells, values, weight, bias, backward),
        peers=[
            Peer("torch conv3d", partial(run_dense, volume, weight, bias, backward), f"torch {torch.__version__}", differ, 1e-4, reach=1)
        ],
        growth=Growth("cells of a surface", sizes, time_ours, SIDES) if what == "of a bent surface" and not backward else None,
    )


ROWS = {
    "sparse_vote_conv": partial(make_row, make_surface, "of a bent surface", False),
    "sparse_vote_conv_backward": partial(make_row, make_surface, "of a bent surface", True),
    "sparse_vote_conv_scattered": partial(make_row, partial(make_scatter, occupancy=OCCUPANCY / 2), "scattered at random", False),
}
