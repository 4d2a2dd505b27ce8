"""Image AUROC of a method over the synthetic defects that a modality can see.

    python -m benchmarks.visible glfm --root data/synthetic --category gasket --sense xyz [--set epochs=0] [--seed 0] [--json FILE]

A third of the synthetic defects is there for the colour camera alone and a third for the depth sensor alone; a method of one modality is
judged here on those that exist in it, and on all good parts. The manifest of the data says which these are; no method reads it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import mm3dad
from mm3dad import files
from mm3dad.errors import DataError
from mm3dad.metrics import auroc
from mm3dad.registry import METHODS


def measure(method: str, root: str | Path, category: str, sense: str, options: dict[str, Any]) -> dict[str, Any]:
    """Fit on one category and score its test set.

    Args:
        method: name of the method.
        root: a tree that `mm3dad prepare synthetic` wrote.
        category: of the tree.
        sense: "rgb" or "xyz".
        options: of the method.

    Raises:
        DataError: the tree has no manifest that names variants.
    """
    found = files.read_json(Path(root) / "manifest.json")
    variants = {one["id"]: one.get("variant") for one in found.get("samples", [])} if isinstance(found, dict) else {}
    if not any(variants.values()):
        raise DataError(f"{root} has no manifest that says which defects exist in which modality; write it with `mm3dad prepare synthetic`")
    inputs = METHODS.get(method).needs.inputs
    train, validation, test = (mm3dad.open_dataset("synthetic", str(root), category, split, modalities=inputs) for split in
                               ("train", "validation", "test"))  # fmt: skip
    start = time.perf_counter()
    detector = mm3dad.create(method, **options).fit(train, validation=validation)
    seconds = time.perf_counter() - start
    kept = [r for r in test.records if r.label == 0 or variants.get(f"{category}/{r.id}") in (sense, "both")]
    scores = torch.tensor([detector.predict(test.read(record)).score for record in kept])
    labels = torch.tensor([record.label for record in kept])
    return {
        "method": method,
        "category": category,
        "sense": sense,
        "options": options,
        "image_auroc": auroc(scores, labels),
        "good": int((labels == 0).sum()),
        "defective": int((labels == 1).sum()),
        "fit_seconds": round(seconds, 1),
    }


def main() -> None:
    """Read the arguments, measure each category and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("--root", required=True)
    parser.add_argument("--category", action="append", required=True)
    parser.add_argument("--sense", choices=("rgb", "xyz"), required=True)
    parser.add_argument("--set", dest="options", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    options = {"seed": arguments.seed, **dict(word.split("=", 1) for word in arguments.options)}
    rows = []
    for category in arguments.category:
        rows.append(measure(arguments.method, arguments.root, category, arguments.sense, options))
        row = rows[-1]
        counted = f"{row['defective']} defective, {row['good']} good"
        print(f"{category}: image AUROC {row['image_auroc']:.4f} ({counted}), fit {row['fit_seconds']} s")
    if arguments.json:
        files.write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
