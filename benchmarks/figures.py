"""Draw the picture of each method's page: RGB, cloud, score map and ground truth of three synthetic defects and a good part.

    python -m benchmarks.figures --root data/synthetic --out docs/methods/img [--methods duet,rad]

Each method is fitted on its own terms, on a few samples of one category: normal ones, the test sets of two other categories for an
auxiliary method, or nothing for a transductive one, which scores the whole test set.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import mm3dad
from benchmarks.plan import METHODS
from mm3dad import files
from mm3dad.data import Dataset
from mm3dad.methods import Detector
from mm3dad.run.auxiliary import is_auxiliary, uses_normals
from mm3dad.types import Prediction, Sample
from mm3dad.view import panel
from mm3dad.view.colors import TRUTH, shared_scale
from mm3dad.view.panel import stack_panels
from mm3dad.view.scene import build_scene

CATEGORY, OTHERS = "cookie", ("gasket", "potato")
SHOTS, FROM_EACH = 16, 12  # normal samples, and samples of each auxiliary category
SHOWN = (("cut", "both"), ("stain", "rgb"), ("dent", "xyz"))
PLACES = {"both": "in image and cloud", "rgb": "in the image alone", "xyz": "in the cloud alone"}
SIZE = 140  # pixels of a tile; with 256 colours a picture has about 50 kB


def fit_method(name: str, root: Path) -> tuple[Detector, Dataset]:
    """Return a detector fitted on a few samples, and the test set with the modalities it looks at."""
    detector = mm3dad.create(name)
    wanted = ("rgb",) if name == "patchcore" else detector.needs.inputs
    samples: list[Sample] = []
    if is_auxiliary(detector):
        sets = [mm3dad.open_dataset("synthetic", root, other, "test", modalities=wanted) for other in OTHERS]
        samples += [one[i] for one in sets for i in range(0, len(one), -(-len(one) // FROM_EACH))]
    if uses_normals(detector):
        train = mm3dad.open_dataset("synthetic", root, CATEGORY, "train", modalities=wanted)
        samples += [train[i] for i in range(min(SHOTS, len(train)))]
    detector.fit(samples)
    return detector, mm3dad.open_dataset("synthetic", root, CATEGORY, "test", modalities=wanted)


def choose_samples(test: Dataset) -> dict[int, str]:
    """Return the places of the samples to show and their captions: what the defect is and where it can be seen, then a good part."""
    variants = {one["id"]: one.get("variant") for one in files.read_json(test.root / "manifest.json")["samples"]}
    chosen = {}
    for defect, place in SHOWN:
        own = [i for i, record in enumerate(test.records) if record.defect == defect]
        fitting = [i for i in own if variants.get(f"{test.category}/{test.records[i].id}") == place]
        for i in (fitting or own)[:1]:
            chosen[i] = f"{defect}, {PLACES[variants[f'{test.category}/{test.records[i].id}']]}"
    return chosen | {next(i for i, record in enumerate(test.records) if record.label == 0): "good"}


def predict_shown(detector: Detector, test: Dataset) -> list[tuple[str, Sample, Prediction]]:
    """Score the samples to show; a transductive method sees the whole set for it."""
    chosen = choose_samples(test)
    if "transductive" in detector.needs.settings:
        scored = detector.predict_all(test)
        return [(caption, test[i], scored[i]) for i, caption in chosen.items()]
    return [(caption, test[i], detector.predict(test[i])) for i, caption in chosen.items()]


def draw_method(name: str, root: Path, path: Path) -> Path:
    """Draw one method's picture; all its maps share one scale of colours."""
    rows = predict_shown(*fit_method(name, root))
    scale = shared_scale([prediction.map.numpy() for _, _, prediction in rows])
    panels = [
        panel(build_scene(sample, prediction, longest=SIZE * 3 // 2), scale=scale, score=prediction.score, title=caption, size=SIZE)
        for caption, sample, prediction in rows
    ]
    picture = reduce_colours(stack_panels(panels))
    return files.write_with(path, lambda temporary: picture.save(temporary, format="PNG", optimize=True))


def reduce_colours(picture: Image.Image) -> Image.Image:
    """Bring a picture to 256 colours; the outline of the truth, a few pixels, keeps its own."""
    found = picture.quantize(255, method=Image.Quantize.FASTOCTREE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*found[: 255 * 3], *TRUTH])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def main(words: Sequence[str] | None = None) -> None:
    """Draw the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="synthetic tree made by `mm3dad prepare synthetic`")
    parser.add_argument("--out", type=Path, default=Path("docs/methods/img"))
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    arguments = parser.parse_args(words)
    for name in arguments.methods:
        path = draw_method(name, arguments.root, arguments.out / f"{name}.png")
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
