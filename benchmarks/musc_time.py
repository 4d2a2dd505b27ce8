"""Processor seconds of muscv2's scoring of a large set, where the published form would take too long on a busy machine.

    python -m benchmarks.musc_time [--samples 60] [--queries 3]

Ours scores the whole set, one layer. The published algorithm judges each sample by all others at the same cost, so that it is run for some
samples only and scaled to all. The bare products multiply each pair of samples once and read nothing off: what any exact way costs at
least. Processor time, not wall time: other work on the machine then counts less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.peers.musc import distances, enhance, interval
from benchmarks.rows.muscv2 import CENTERS, GRID, make_features, make_set
from benchmarks.rows.mutual import multiply_pairs


def spend(work: Callable[[], Any]) -> float:
    """Return the processor seconds of a piece of work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--queries", type=int, default=3, help="samples that the published algorithm judges")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = arguments.samples
    images, points = (make_features(count, *shape).float() for shape in ((GRID * GRID, 768), (CENTERS, 384)))
    patch = torch.randint(GRID * GRID, (count, CENTERS), generator=torch.Generator().manual_seed(0))

    def judge(loops: bool) -> None:
        for query in range(arguments.queries):
            for part in enhance(distances(images, query), distances(points, query), patch[query], loops):
                interval(part)

    seconds = {"mm3dad": spend(make_set(False, count).ours)}
    for name, loops in (("as written", True), ("loops removed", False)):
        seconds[name] = spend(lambda loops=loops: judge(loops)) * count / arguments.queries
    some = min(count, 8)
    share = count * (count - 1) / (some * (some - 1))
    seconds["bare products"] = share * sum(spend(lambda part=part: multiply_pairs(part[:some])) for part in (images, points))
    ratio = {name: round(value / seconds["mm3dad"], 2) for name, value in seconds.items()}
    print(json.dumps({"samples": count, "seconds": {name: round(value, 1) for name, value in seconds.items()}, "ratio": ratio}))


if __name__ == "__main__":
    main()
