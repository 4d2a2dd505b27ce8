"""Peak memory of muscv2 on a set, encoders included: N samples of 224 x 224 pixels with the published widths.

    python benchmarks/musc_memory.py [--samples 100] [--size 224] [--json FILE]

Both encoders have the published architecture (DINO ViT-B/8, three layers; Point-MAE, 1,024 groups of 128 points) and random weights,
whose values matter to neither bytes nor time. Samples are made when they are asked for, as a dataset reads them.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mm3dad
from mm3dad.nets.point_transformer import PREFIX, PointTransformer
from mm3dad.types import Meta, Sample


class MadeUp(Sequence[Sample]):
    """Waves with noise; every tenth part has a bump."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        generator = torch.Generator().manual_seed(index)
        y, x = torch.meshgrid(*(torch.linspace(0, 0.1, self.size),) * 2, indexing="ij")
        z = 0.4 + 0.002 * torch.sin(90 * x) + 1e-5 * torch.randn(y.shape, generator=generator)
        if index % 10 == 0:
            z = z - 0.006 * torch.exp(-((y - 0.04) ** 2 + (x - 0.06) ** 2) / (2 * 0.004**2))
        rgb = (0.5 + 0.05 * torch.randn(3, self.size, self.size, generator=generator)).clamp(0, 1)
        return Sample(rgb, torch.stack([x, y, z]).float(), meta=Meta(f"test/{index:04d}"))


def peak_gib() -> float:
    """Return the peak resident set of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print peak memory and time, and keep them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", help="where the result goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "point_mae.pth"
        torch.save({"base_model": {PREFIX + key: value for key, value in PointTransformer().state_dict().items()}}, path)
        detector = mm3dad.create(
            "muscv2", backbone="dino_vitb8", weights="random", points="point_mae", point_weights=str(path), image_size=arguments.size
        ).fit()
        before, start = peak_gib(), time.perf_counter()
        predictions = detector.predict_all(MadeUp(arguments.samples, arguments.size))
    result = {
        "samples": len(predictions),
        "size": arguments.size,
        "peak_gib": round(peak_gib(), 3),
        "peak_gib_before": round(before, 3),
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "mm3dad": mm3dad.__version__,
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
