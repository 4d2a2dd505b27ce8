"""Memory and precision of rad's bank at the published size: a bank of N images, written, saved, loaded and searched.

    python benchmarks/rad_memory.py --images 400 --json rad_memory.json

Rows are random (their values matter to neither bytes nor time); layers, grid and widths are those of the paper (DINOv3 ViT-B/16 at 448:
4 layers, 28 x 28 patches, 768 channels). Bytes grow linearly with the images, so those of larger banks are exact: they are computed by
`LayeredBank.estimate_bytes`, which must equal what was measured. Search runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch

from mm3dad import files
from mm3dad.memory.layered import LayeredBank
from mm3dad.run._arguments import list_versions
from mm3dad.scoring.windowed import windowed_scores

LAYERS, GRID, CHANNELS = 4, (28, 28), 768
KNOWN = {"MVTec-AD": 3629, "VisA": 8659}


def image(number: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the descriptor and the layers of a made-up image."""
    generator = torch.Generator().manual_seed(number)
    layers = [torch.randn(GRID[0] * GRID[1], CHANNELS, generator=generator) for _ in range(LAYERS)]
    return layers[-1].mean(0), layers


def peak_bytes() -> tuple[int, int]:
    """Return the peak resident memory of this process, and that part of it now which no file backs."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, int(status["RssAnon"].split()[0]) * 1024


def build(folder: Path, count: int) -> dict[str, float]:
    """Write a bank through a memory-mapped file and save it."""
    start = time.perf_counter()
    bank = LayeredBank(count, folder / "rows")
    for number in range(count):
        bank.add(str(number), *image(number))
    built = time.perf_counter()
    files.write_tensors(folder / "bank.safetensors", bank.state())
    peak, anonymous = peak_bytes()
    measured = sum(tensor.numel() * tensor.element_size() for tensor in bank.state().values())
    return {
        "bank_bytes": measured,
        "build_seconds": round(built - start, 2),
        "save_seconds": round(time.perf_counter() - built, 2),
        "build_peak_rss_bytes": peak,
        "build_anonymous_bytes": anonymous,
    }


def search(folder: Path, neighbors: int, window: int) -> dict[str, float]:
    """Load the saved bank and score one image; compare with the rows in single precision."""
    start = time.perf_counter()
    bank = LayeredBank.from_state(files.read_tensors(folder / "bank.safetensors"))
    loaded = time.perf_counter()
    descriptor, layers = image(10**6)
    images = bank.retrieve(descriptor, neighbors)
    found = [windowed_scores(layer, bank.patches_of(number, images), GRID, window) for number, layer in enumerate(layers)]
    scored = time.perf_counter()
    peak, anonymous = peak_bytes()
    exact = torch.stack([image(number)[1][-1] for number in images.tolist()])
    return {
        "load_seconds": round(loaded - start, 2),
        "score_seconds": round(scored - loaded, 2),
        "search_peak_rss_bytes": peak,
        "search_anonymous_bytes": anonymous,
        "largest_difference_to_fp32": float((windowed_scores(layers[-1], exact, GRID, window) - found[-1]).abs().max()),
    }


def main() -> None:
    """Run both parts and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--neighbors", type=int, default=150)
    parser.add_argument("--window", type=int, default=1)
    parser.add_argument("--folder", help="where the bank is written (default: a temporary folder)")
    parser.add_argument("--json", help="a copy of the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, maxtasksperchild=1) as pool:
            result = pool.apply(build, (Path(name), arguments.images))
        with context.Pool(1, maxtasksperchild=1) as pool:
            result |= pool.apply(search, (Path(name), arguments.neighbors, arguments.window))
    widths = [CHANNELS] * LAYERS
    expected = LayeredBank.estimate_bytes(arguments.images, GRID[0] * GRID[1], widths)
    assert expected == result["bank_bytes"], (expected, result["bank_bytes"])
    result["bytes_of"] = {key: LayeredBank.estimate_bytes(count, GRID[0] * GRID[1], widths) for key, count in KNOWN.items()}
    result |= {"arguments": vars(arguments), "versions": list_versions()}
    print(json.dumps(result, indent=1))
    if arguments.json:
        files.write_json(arguments.json, result)


if __name__ == "__main__":
    main()
