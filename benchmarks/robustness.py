"""How gently `duet` and the strongest other method degrade when the sensors get worse, and whether `duet` says so.

    python -m benchmarks.robustness --root data/synthetic --out robustness [--category C]... [--methods duet,m3dm] [--only combined]...

Each method is fitted once on the good parts of a category as they are; then the test parts, good and defective alike, are degraded in
memory, one family of faults at a time. Only the contaminated training set is fitted on anew, and judged on the same rest of the test set
at each share. Every condition is kept in OUT/<method>/<category>.json as soon as it is measured; a second call goes on from there.
The page and its curves are drawn from all that OUT holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mm3dad
from benchmarks.robustness_page import write_robustness
from mm3dad import files
from mm3dad.data import degrade
from mm3dad.data.synthetic.parts import PARTS
from mm3dad.data.synthetic.sensor import DEPTH_NOISE
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.features.condition import NAMES
from mm3dad.methods import Detector
from mm3dad.run.progress import track
from mm3dad.scoring.promise import normals_needed
from mm3dad.types import Sample

PICTURE_NOISE = 0.012  # mean deviation of a white pixel of the synthetic camera
RECORDING = [f"{modality}_{name}" for modality, names in NAMES.items() for name in names]
Change = Callable[[Sample, float], Sample]


def add_noise(sample: Sample, factor: float) -> Sample:
    """Return what sensors of `factor` times the noise would have recorded: variances add."""
    extra = (factor**2 - 1) ** 0.5
    return degrade.add_picture_noise(degrade.add_depth_noise(sample, extra * DEPTH_NOISE * 1e-3), extra * PICTURE_NOISE)


def combine_faults(sample: Sample, strength: float) -> Sample:
    """Return twice the noise, 20 % of the points missing and the picture 2 pixels off at strength 1."""
    noisy = add_noise(sample, 1 + strength)
    return degrade.shift_picture(degrade.drop_points(noisy, 0.2 * strength), 0, round(2 * strength))


def kill_sensor(sample: Sample, which: float) -> Sample:
    """Let the camera (1), or the depth sensor (2), deliver nothing, or the camera deliver black pictures (3)."""
    meta = dataclasses.replace(sample.meta, paths={})
    if which == 3:
        return degrade.expose(dataclasses.replace(sample, rgb=None if sample.rgb is None else 0 * sample.rgb), 0)
    gone: dict[str, Any] = {"rgb": None} if which == 1 else {"xyz": None, "valid": None}
    return dataclasses.replace(sample, meta=meta, **gone)


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of fault at growing strength.

    Attributes:
        title: as it stands on the page.
        levels: strengths; the clean state is not among them.
        words: what each level is called.
        change: (sample, level) -> degraded sample; None: the training set is what gets worse.
    """

    title: str
    levels: tuple[float, ...]
    words: tuple[str, ...]
    change: Change | None


FAMILIES = {
    "combined": Family("noise x2, 20 % of the points missing, picture 2 px off", (1,), ("all three",), combine_faults),
    "contaminated": Family("defects among the training parts", (0.05, 0.1, 0.2), ("5 %", "10 %", "20 %"), None),
    "noise": Family("noise of both sensors", (2, 4, 8), ("x2", "x4", "x8"), add_noise),
    "missing": Family("missing points", (0.2, 0.4, 0.6), ("20 %", "40 %", "60 %"), degrade.drop_points),
    "shift": Family("picture off the cloud", (1, 2, 4, 8), ("1 px", "2 px", "4 px", "8 px"),
                    lambda sample, level: degrade.shift_picture(sample, 0, int(level))),
    "darker": Family("shorter exposure", (-0.25, -0.5, -1), ("-1/4 stop", "-1/2 stop", "-1 stop"), degrade.expose),
    "brighter": Family("longer exposure", (0.25, 0.5, 1), ("+1/4 stop", "+1/2 stop", "+1 stop"), degrade.expose),
    "color": Family("light drifting to red", (0.05, 0.1, 0.2), ("5 %", "10 %", "20 %"), degrade.warm),
    "blur": Family("picture out of focus", (1, 2, 4), ("1 px", "2 px", "4 px"), degrade.blur_picture),
    "occlusion": Family("view occluded from an edge", (0.05, 0.1, 0.2), ("5 %", "10 %", "20 %"), degrade.occlude),
    "unit": Family("wrong unit of the cloud", (1000,), ("mm as m",), degrade.scale_cloud),
    "dead": Family("a sensor dies", (1, 2, 3), ("no picture", "no cloud", "black picture"), kill_sensor),
}  # fmt: skip


def contaminate(good: Sequence[Sample], defects: Sequence[Sample], share: float) -> list[Sample]:
    """Return the good samples with defects among them that make up `share` of the whole."""
    count = round(share / (1 - share) * len(good))
    return [*good, *defects[:count]]


def hold_back(samples: Sequence[Sample], count: int) -> tuple[list[Sample], list[Sample]]:
    """Split test samples: `count` defective ones, of all kinds of defect in turn, and the rest.

    Raises:
        DataError: fewer defects than that, and one to judge by.
    """
    kinds: dict[str | None, list[Sample]] = {}
    for sample in samples:
        if sample.label == 1:
            kinds.setdefault(sample.meta.defect, []).append(sample)
    turns = [
        sample for turn in range(max(map(len, kinds.values()), default=0)) for rows in kinds.values() for sample in rows[turn : turn + 1]
    ]
    if len(turns) <= count:
        raise DataError(
            f"contaminating the training set takes {count} defects and more to judge by, got {len(turns)}; use another category"
        )
    taken = {sample.meta.id for sample in turns[:count]}
    return turns[:count], [sample for sample in samples if sample.meta.id not in taken]


def score(detector: Detector, samples: Sequence[Sample], change: Change | None, level: float, title: str) -> list[dict[str, Any]]:
    """Return one row for each sample: its label and what the detector says of the degraded sample, or why it refuses."""
    rows = []
    for sample in track(samples, title):
        row: dict[str, Any] = {"id": sample.meta.id, "label": sample.label, "error": None}
        try:
            said = detector.predict(sample if change is None else change(sample, level))
            row |= {"score": said.score, "is_anomaly": said.is_anomaly, "is_outside": said.is_outside}
            row["recording"] = {name: float(said.parts[name]) for name in RECORDING if name in said.parts}
        except DataError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows


def describe_calibration(detector: Detector, validation: int) -> dict[str, Any]:
    """Say how many normal samples set the threshold, from which follows what it can promise, and how they were recorded.

    Args:
        validation: validation samples; where they are too few for the rate, a method that keeps scores of held-out ones adds these.
    """
    try:
        normals = detector.describe_normals()
    except ConfigError:
        return {"normals": validation, "recording": {}}
    is_enough = validation >= normals_needed(detector.config.false_alarms)
    count = validation if is_enough else validation + len(next(iter(normals.values())))
    return {"normals": count, "recording": {name: normals[name].tolist() for name in RECORDING if name in normals}}


def measure(method: str, root: str | Path, category: str, families: Sequence[str], options: dict[str, Any], path: Path) -> None:
    """Measure the conditions of one method on one category that `path` does not hold yet, and keep each there.

    Raises:
        ModelError: `path` was measured with another setting.
    """
    splits = {name: mm3dad.open_dataset("synthetic", str(root), category, name) for name in ("train", "validation", "test")}
    detector = mm3dad.create(method, **options)
    identity = {"mm3dad": mm3dad.__version__, "method": method, "category": category, "config": dataclasses.asdict(detector.config)}
    identity = json.loads(files.format_line(identity))  # as a file gives it back
    kept = files.read_json(path) if path.exists() else {"identity": identity, "rows": {}}
    if files.find_differences(kept["identity"], identity):
        raise ModelError(f"{path} was measured with another setting; take another --out, or delete it")

    def keep(name: str, rows: list[dict[str, Any]]) -> None:
        kept["rows"][name] = rows
        files.write_json(path, kept)

    wanted = [(name, level) for name in families for level in FAMILIES[name].levels if f"{name} {level:g}" not in kept["rows"]]
    if not wanted and "clean" in kept["rows"]:
        return
    test = list(splits["test"])
    if "clean" not in kept["rows"] or any(FAMILIES[name].change for name, _ in wanted):
        detector.fit(splits["train"], validation=splits["validation"])
        kept |= describe_calibration(detector, len(splits["validation"]))
    if "clean" not in kept["rows"]:
        keep("clean", score(detector, test, None, 0, f"{method} {category} clean"))
    for name, level in wanted:
        title = f"{method} {category} {name} {level:g}"
        change = FAMILIES[name].change
        if change is not None:
            keep(f"{name} {level:g}", score(detector, test, change, level, title))
            continue
        most = max(FAMILIES[name].levels)
        defects, rest = hold_back(test, round(most / (1 - most) * len(splits["train"])))
        spoilt = mm3dad.create(method, **options).fit(contaminate(splits["train"], defects, level), validation=splits["validation"])
        keep(f"{name} {level:g}", score(spoilt, rest, None, 0, title))


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="a tree that `mm3dad prepare synthetic` wrote")
    parser.add_argument("--out", required=True, help="keeps the scores")
    parser.add_argument("--category", action="append", help="all by default")
    parser.add_argument("--methods", default="duet,m3dm")
    parser.add_argument("--only", action="append", choices=list(FAMILIES), help="some of the faults")
    parser.add_argument("--page", help="such as docs/robustness.md; its curves go to images/ beside it")
    arguments = parser.parse_args()
    out, families = Path(arguments.out), arguments.only or list(FAMILIES)
    for category in arguments.category or list(PARTS):
        for method in arguments.methods.split(","):
            measure(method, arguments.root, category, families, {}, out / method / f"{category}.json")
            if arguments.page:
                write_robustness(out, Path(arguments.page), {name: (one.title, one.levels, one.words) for name, one in FAMILIES.items()})


if __name__ == "__main__":
    main()
