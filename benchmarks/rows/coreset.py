"""The coreset: exact lazy k-centre beside anomalib's sampler and beside the plain algorithm in the same compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import metadata

import torch

from benchmarks.harness import Growth, Peer, Row, Run, UnavailableError
from benchmarks.rows._tire import WIDTH, tire_rows
from mm3dad.memory import select_coreset
from mm3dad.ops._native import native_kernels

PLAIN = "plain greedy in compiled code: extensions/csrc/k_center.cpp, every row against every pick, same threads"


def covering_radius(rows: torch.Tensor, chosen: torch.Tensor) -> float:
    """Return the largest distance of a row to its nearest chosen one."""
    return max(float(torch.cdist(block, rows[chosen]).amin(1).max()) for block in rows.split(4096))


def pick_plainly(rows: torch.Tensor, count: int, start: int = 0) -> torch.Tensor:
    """Pick by the plain algorithm in compiled code."""
    kernels = native_kernels()
    if kernels is None:
        raise UnavailableError("the native kernels are not built; python extensions/build_kernels.py")
    return kernels.k_center_plain(rows, count, start, torch.get_num_threads())


def count_differing(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return how many picks differ."""
    return float((ours != theirs).sum())


def make_published(quick: bool) -> Row:
    """20,000 rows to 2,000: what users of anomalib's PatchCore wait for."""
    total = 1500 if quick else 20000
    rows = tire_rows(224, 6 if quick else 60)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:total]].contiguous()
    count = total // 10
    start = int(torch.randint(total, (1,), generator=torch.Generator().manual_seed(0)))
    ours = partial(select_coreset, rows, count, start)
    peers = [Peer("plain compiled", partial(pick_plainly, rows, count, start), PLAIN, count_differing)]
    try:
        from anomalib.models.components.sampling import KCenterGreedy
    except ImportError:
        source = "anomalib's KCenterGreedy is not installed (pip install anomalib); its loop re-implemented: norms, minimum, argmax a pick"
        peers.insert(
            0, Peer("greedy loop in torch", partial(_torch_loop, rows, count, start), source, partial(_radius_gap, rows), 1e-4, 200)
        )
    else:

        def run_peer() -> torch.Tensor:
            # A third axis makes it take the rows as they are, and the seed makes it start where we do.
            torch.manual_seed(0)
            return torch.tensor(KCenterGreedy(rows.view(total, -1, 16), count / total).select_coreset_idxs())

        source = f"anomalib {metadata.version('anomalib')}, called; float32 distances, so that near ties may fall otherwise"
        peers.insert(0, Peer("anomalib KCenterGreedy", run_peer, source, partial(_radius_gap, rows), 1e-4, reach=200))
    return Row(
        work="greedy k-centre coreset, 10 % of the rows",
        inputs=f"{total:,} x {WIDTH} patches of the tire training images at 224 px, embedded default, random projection",
        ours=ours,
        peers=peers,
        facts=lambda own, found: {
            "covering radius, ours": covering_radius(rows, own),
            **{f"covering radius, {name}": covering_radius(rows, picks) for name, picks in found.items()},
            **{f"picks that differ, {name}": count_differing(own, picks) for name, picks in found.items()},
        },
        growth=Growth("rows, 10 % picked", [300, 600, 1200] if quick else [2500, 5000, 10000, 20000], partial(_grow, rows), SIDES),
    )


SIDES: Sequence[str] = ("mm3dad", "plain compiled")


def _grow(rows: torch.Tensor, side: str, size: int) -> Run:
    pick = select_coreset if side == "mm3dad" else pick_plainly
    return partial(pick, rows[:size], size // 10)


def _radius_gap(rows: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return how far apart the covering radii are, relative to ours."""
    own = covering_radius(rows, ours)
    return abs(covering_radius(rows, theirs) - own) / own


def _torch_loop(rows: torch.Tensor, count: int, start: int) -> torch.Tensor:
    picks = [torch.tensor(start)]
    nearest = torch.full((len(rows), 1), torch.inf)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, torch.linalg.norm(rows - rows[picks[-1]], dim=1, keepdim=True))
        picks.append(nearest[:, 0].argmax())
        nearest[picks[-1]] = 0
    return torch.stack(picks)


def make_all_patches(image_size: int, quick: bool) -> Row:
    """Every patch of the training images, 10 % of them picked."""
    rows = tire_rows(image_size, 4 if quick else 60)
    count = len(rows) // 10
    return Row(
        work="greedy k-centre coreset, 10 % of the rows",
        inputs=f"{len(rows):,} x {WIDTH}: all patches of the tire training images at {image_size} px, random projection",
        ours=partial(select_coreset, rows, count),
        peers=[Peer("plain compiled", partial(pick_plainly, rows, count), PLAIN, count_differing, reach=6)],
    )


def make_noise(quick: bool) -> Row:
    """Rows without structure: nothing can be ruled out, so the lazy form must see that and cost no more than the plain one.

    It runs the plain steps itself then, after a look at the rows that costs one run about 15 ms: 3 % are allowed for it.
    """
    total = 1500 if quick else 20000
    rows = torch.randn(total, WIDTH, generator=torch.Generator().manual_seed(0))
    return Row(
        work="greedy k-centre coreset, 10 % of the rows",
        inputs=f"{total:,} x {WIDTH} independent normal numbers",
        ours=partial(select_coreset, rows, total // 10),
        peers=[Peer("plain compiled", partial(pick_plainly, rows, total // 10), PLAIN, count_differing, reach=1)],
    )


ROWS = {
    "coreset_20000": make_published,
    "coreset_224px": partial(make_all_patches, 224),
    "coreset_448px": partial(make_all_patches, 448),
    "coreset_noise": make_noise,
}
