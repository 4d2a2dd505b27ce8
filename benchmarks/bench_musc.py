"""Time muscv2's scoring of a set beside the published algorithm, as written and with its Python loops removed.

    python benchmarks/bench_musc.py [--samples 60] [--widths 768,384] [--layers 1] [--json FILE]

All three get the same features: patches that lie near common prototypes, as those of like parts do. Each runs once, in this process,
after a small warm-up; the published forms cost minutes. Scores must agree, or the script fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from peers.musc import score_set

import mm3dad
from mm3dad.methods.muscv2 import Described

GRID, CENTERS = 28, 1024


def make_features(samples: int, patches: int, width: int, layer: int) -> torch.Tensor:
    """Return (N, P, C): common prototypes with noise of a third of their size."""
    generator = torch.Generator().manual_seed(100 * width + layer)
    features = torch.randn(1, patches, width, generator=generator) + torch.randn(samples, patches, width, generator=generator) / 3
    return torch.nn.functional.normalize(features, dim=2).half()


def main() -> None:
    """Print the times, their ratios and the largest difference of the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--widths", default="768,384", help="channels of a patch and of a point group; 768,384 is published, 152,66 ours")
    parser.add_argument("--layers", type=int, default=1, help="the published method has 3; the time is proportional")
    parser.add_argument("--json", help="where the result goes")
    arguments = parser.parse_args()
    widths = [int(width) for width in arguments.widths.split(",")]
    shapes = ((GRID * GRID, widths[0]), (CENTERS, widths[1]))
    images, points = ([make_features(arguments.samples, *shape, layer) for layer in range(arguments.layers)] for shape in shapes)
    patch = torch.randint(GRID * GRID, (arguments.samples, CENTERS), generator=torch.Generator().manual_seed(0))
    detector = mm3dad.create("muscv2", reference=True).fit()
    found = [
        Described(
            str(i),
            (224, 224),
            {"rgb": [layer[i] for layer in images], "xyz": [layer[i] for layer in points]},
            (GRID, GRID),
            patch_of_center=patch[i],
        )
        for i in range(arguments.samples)
    ]
    detector._score_set(found[:3])
    wide = [[layer.float() for layer in part] for part in (images, points)]
    start = time.perf_counter()
    ours = detector._score_set(found)
    seconds = {"mm3dad": time.perf_counter() - start}
    difference = 0.0
    for name, loops in (("as written", True), ("loops removed", False)):
        start = time.perf_counter()
        theirs = score_set(*wide, patch, loops)
        seconds[name] = time.perf_counter() - start
        difference = max(difference, *(float((a - b).abs().max()) for a, b in zip(ours.values(), theirs, strict=True)))
    result = {
        "samples": arguments.samples,
        "widths": widths,
        "layers": arguments.layers,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "speedup": {name: round(value / seconds["mm3dad"], 2) for name, value in seconds.items()},
        "largest_difference": difference,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "mm3dad": mm3dad.__version__,
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if difference > 2e-3:
        raise SystemExit(f"scores differ by {difference:.2g}; expected at most 2e-3")


if __name__ == "__main__":
    main()
