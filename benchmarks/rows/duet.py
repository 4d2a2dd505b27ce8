"""duet's fit and predict beside BTF's published pipeline with the same backbone."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import torch

import mm3dad
from benchmarks.harness import Growth, Peer, Row, Run
from benchmarks.peers.btf import PublishedBTF, thin_by_loop
from benchmarks.rows.coreset import pick_plainly
from benchmarks.rows.geometry import make_cloud, need
from mm3dad.features.rgb import RGBExtractor
from mm3dad.types import Prediction, Sample

# The peer's time grows with the square of the images: 200 of them, as the method's users have, take it many minutes.
IMAGES = int(os.environ.get("MM3DAD_BENCH_IMAGES", "20"))
SIZE = 224
SOURCE = "BTF's pipeline on the backbone of ours (efficientnet_lite0), re-implemented from the sheet, FPFH by open3d"


def make_part(seed: int, points: int, size: int = SIZE) -> Sample:
    """Return a view of size x size pixels of a bent, textured disc that measures about `points` points; beyond it nothing is measured."""
    generator = torch.Generator().manual_seed(seed)
    xyz = make_cloud(size, seed).T.reshape(3, size, size)
    row, column = torch.meshgrid(torch.arange(size) - size / 2, torch.arange(size) - size / 2, indexing="ij")
    texture = 0.5 + 0.2 * torch.sin(row / 5) * torch.cos(column / 7) + 0.05 * torch.rand(size, size, generator=generator)
    disc = row.square() + column.square() <= points / torch.pi if points < size * size else torch.ones(size, size, dtype=torch.bool)
    rgb = torch.stack([texture, 0.8 * texture, 0.6 * texture]) * disc
    return Sample(rgb, xyz.float().contiguous(), disc, label=0)


def check_form(ours: Prediction, theirs: tuple[float, torch.Tensor]) -> float:
    """Return 0 where both give a finite score and a finite map of one shape: two methods, whose values differ by design."""
    score, heat = theirs
    alike = ours.map.shape == heat.shape and bool(ours.map.isfinite().all() & heat.isfinite().all())
    return 0.0 if alike and torch.tensor([ours.score, score]).isfinite().all() else 1.0


def make_predict(points: int, quick: bool) -> Row:
    """One view, features and search; both models know the same normal views."""
    open3d = need("open3d")
    normal = [make_part(seed, points) for seed in range(2 if quick else IMAGES)]
    view = make_part(1000, points)
    ours = mm3dad.create("duet").fit(normal)
    # The compiled greedy fills the bank sooner than the loop: as many rows, the same but for near ties.
    theirs = PublishedBTF(open3d, RGBExtractor(), pick_plainly).fit(normal)
    return Row(
        work="predict one view, both modalities, embedded default (duet)",
        inputs=f"{SIZE} px, {int(view.valid.sum()):,} measured points, {len(normal)} normal views in the bank; "
        "other methods: only the form of the results is compared; BTF's predict has no loop to remove",
        ours=partial(ours.predict, view),
        peers=[Peer("BTF as published", partial(theirs.predict, view), SOURCE, check_form, reach=5)],
        within=0.2,
    )


def make_fit(quick: bool) -> Row:
    """From views to a fitted model, held-out scores and threshold included (BTF has none)."""
    open3d = need("open3d")
    sizes = [2, 3] if quick else [IMAGES // 4, IMAGES // 2, IMAGES]
    normal = [make_part(seed, 20000) for seed in range(max(sizes))]
    extractor = RGBExtractor()

    def make(side: str, count: int) -> Run:
        if side == "mm3dad":
            return lambda: mm3dad.create("duet").fit(normal[:count])
        thin = thin_by_loop if side == "BTF as published" else pick_plainly
        return lambda: PublishedBTF(open3d, extractor, thin).fit(normal[:count])

    def check_fitted(own: Any, theirs: PublishedBTF) -> float:
        return 0.0 if own.is_fitted and len(theirs.bank) == int(0.1 * 784 * len(normal)) else 1.0

    names = ("BTF as published", "BTF, loop compiled")
    sources = (f"{SOURCE}, one pick a turn", f"{SOURCE}, the loop in compiled code")
    return Row(
        work="fit on normal views, both modalities, embedded default (duet)",
        inputs=f"{len(normal)} views of {SIZE} px and 20,000 points (MM3DAD_BENCH_IMAGES=200 for the full size); "
        "other methods: the size of the banks is checked",
        ours=make("mm3dad", len(normal)),
        peers=[
            Peer(name, make(name, len(normal)), source, check_fitted, reach=5 if name == names[0] else None)
            for name, source in zip(names, sources, strict=True)
        ],
        growth=Growth("views", sizes, make, ("mm3dad", *names)),
    )


def make_fit_200(quick: bool) -> Row:
    """The fit on 200 views. The published loop would take about an hour, so it is given up once the ratio to reach is passed."""
    open3d = need("open3d")
    normal = [make_part(seed, 20000) for seed in range(3 if quick else 200)]
    extractor, wanted, reach = RGBExtractor(), int(0.1 * 784 * len(normal)), 5.0
    took: list[float] = []

    def fit() -> Any:
        begin = time.perf_counter()
        model = mm3dad.create("duet").fit(normal)
        took.append(time.perf_counter() - begin)
        return model

    def fit_until_passed() -> PublishedBTF:
        thin = partial(thin_by_loop, until=time.perf_counter() + 1.02 * reach * took[-1])
        return PublishedBTF(open3d, extractor, thin).fit(normal)

    def check_fitted(own: Any, theirs: PublishedBTF) -> float:
        return 0.0 if own.is_fitted and 0 < len(theirs.bank) <= wanted else 1.0

    return Row(
        work="fit on 200 normal views, both modalities, embedded default (duet)",
        inputs=f"{len(normal)} views of {SIZE} px and 20,000 points; where the published loop is given up the ratio is a lower bound",
        ours=fit,
        peers=[Peer("BTF as published", fit_until_passed, f"{SOURCE}, one pick a turn", check_fitted, reach=reach)],
        facts=lambda own, others: {"picks of the published loop": len(others["BTF as published"].bank), "picks it wants": wanted},
    )


ROWS = {
    "duet_predict": partial(make_predict, 20000),
    "duet_predict_whole_view": partial(make_predict, SIZE * SIZE),
    "duet_fit": make_fit,
    "duet_fit_200": make_fit_200,
}
