"""The whole of `duet` beside BTF's published pipeline with the same backbone: fitting on good parts, and one part at a time."""

from __future__ import annotations

import tempfile
from functools import cache, partial

from torch import Tensor

import mm3dad
from benchmarks.harness import Peer, Row, UnavailableError
from benchmarks.rows.coreset import pick_plainly
from mm3dad.data.synthetic import write_dataset
from mm3dad.types import Sample

SOURCE = "BTF, re-implemented from the sheet, step by step; backbone as ours, float32 on the CPU where the published code takes float16"


@cache
def make_parts(train: int, size: int) -> tuple[list[Sample], list[Sample]]:
    """Return good parts, and a good and a defective one to test, of the synthetic cookie."""
    with tempfile.TemporaryDirectory() as folder:
        counts = {"train": train, "validation": 0, "good": 1, "defect": 1}
        write_dataset(folder, categories=["cookie"], size=size, counts=counts)
        good, test = (list(mm3dad.open_dataset("synthetic", folder, "cookie", split)) for split in ("train", "test"))
    return good, [next(sample for sample in test if sample.meta.defect == kind) for kind in ("good", "hole")]


def _published(compiled: bool = False) -> object:
    try:
        from benchmarks.peers.btf import PublishedBTF
    except ImportError as error:
        raise UnavailableError(f"{error.name} is not installed; make setup") from error
    return PublishedBTF(lambda rows, count: pick_plainly(rows.contiguous(), count)) if compiled else PublishedBTF()


def misses(found: Tensor, mask: Tensor) -> bool:
    """Say whether the highest place of a map (h, w) lies off the defect, by more than a 28th of the picture."""
    row, column = divmod(int(found.argmax()), found.shape[1])
    rows, columns = mask.nonzero(as_tuple=True)
    near = ((rows / len(mask) - row / len(found)).square() + (columns / mask.shape[1] - column / found.shape[1]).square()).amin().sqrt()
    return bool(near > 1 / 28)


def make_predict(quick: bool) -> Row:
    """One part of 400 x 400 at 224 px, at most 20,000 points, both modalities."""
    good, (_, defective) = make_parts(3 if quick else 40, 200 if quick else 400)
    ours = mm3dad.create("duet").fit(good)
    theirs = _published(compiled=True).fit(good)
    return Row(
        work="predict: one part, RGB + 3D, at 224 px, from the sample in memory to score and map",
        inputs=f"synthetic cookie, {tuple(defective.size)} pixels, banks of {len(good)} parts; both must find the hole",
        ours=partial(ours.predict, defective),
        peers=[
            Peer(
                "BTF as published",
                partial(theirs.predict, defective),
                f"{SOURCE}; nothing in its prediction loops, so there is no further form of it",
                lambda own, other: float(misses(own.map, defective.mask) + misses(other[1], defective.mask)),
                reach=5,
            )
        ],
        within=0.2,
    )


def make_fit(parts: int, quick: bool) -> Row:
    """Fitting from samples in memory."""
    good, tests = make_parts(4 if quick else parts, 200 if quick else 400)

    def agree(ours: mm3dad.methods.Detector, theirs: object) -> float:
        """0 where both score the defective part above the good one."""
        own = [ours.predict(sample).score for sample in tests]
        other = [theirs.predict(sample)[0] for sample in tests]
        return float((own[1] <= own[0]) + (other[1] <= other[0]))

    def peer(name: str, compiled: bool, source: str, reach: float | None) -> Peer:
        return Peer(name, lambda: _published(compiled).fit(good), source, agree, reach=reach)

    return Row(
        work="fit: features, banks, coresets, held-out scores and thresholds",
        inputs=f"{len(good)} good synthetic cookies, RGB + 3D, at 224 px; both must score a defective part above a good one",
        ours=lambda: mm3dad.create("duet").fit(good),
        peers=[
            peer("BTF as published", False, SOURCE, 5),
            peer("BTF, coreset compiled", True, f"{SOURCE}; its one loop, the coreset, in compiled code", None),
        ],
    )


ROWS = {
    "duet_predict": make_predict,
    "duet_fit_40": partial(make_fit, 40),
    "duet_fit_200": partial(make_fit, 200),
}

