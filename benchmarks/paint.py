"""Make a data set of painted defects out of good parts only, to choose settings on without looking at a test set.

    python benchmarks/paint.py --dataset mvtec3d --root data/mvtec3d --category tire --out data/painted

Part of the training and all validation images become the test split of a new tree in the layout of MVTec 3D-AD, once as they are (good) and
once with a defect: a blob of another tone, a piece of another place and a scratch in the image; a dent and a bump, small and wide,
in the cloud. Every third training image (by order of id) is taken out of training for this.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import mm3dad
from mm3dad.data.writing import write_sample
from mm3dad.types import Sample


def blob(size: tuple[int, int], radius: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return an irregular soft-edged region (H, W) in [0, 1], 0 outside, and its rim: 0.5 at the edge."""
    H, W = size
    row, column = torch.meshgrid(torch.arange(H, dtype=torch.float32), torch.arange(W, dtype=torch.float32), indexing="ij")
    middle = (0.25 + 0.5 * torch.rand(2, generator=generator)) * torch.tensor([H, W])
    wobble = functional.interpolate(torch.randn(1, 1, 6, 6, generator=generator), size=size, mode="bicubic")[0, 0]
    distance = ((row - middle[0]).square() + (column - middle[1]).square()).sqrt() / radius
    field = 1 - distance + 0.15 * wobble
    return (8 * field).clamp(0, 1), middle


def paint_tone(sample: Sample, generator: torch.Generator) -> Sample:
    """Change the tone of a blob by 25 to 45 % of the range."""
    assert sample.rgb is not None
    region, _ = blob(sample.size, sample.size[0] * float(0.03 + 0.07 * torch.rand(1, generator=generator)), generator)
    change = (0.25 + 0.2 * torch.rand(3, 1, 1, generator=generator)) * torch.randn(1, generator=generator).sign()
    return _with(sample, rgb=(sample.rgb + change * region).clamp(0, 1), region=region)


def paint_piece(sample: Sample, generator: torch.Generator) -> Sample:
    """Put a turned piece of another place of the image into a blob."""
    assert sample.rgb is not None
    region, _ = blob(sample.size, sample.size[0] * float(0.03 + 0.07 * torch.rand(1, generator=generator)), generator)
    shift = (torch.tensor(sample.size) * (0.2 + 0.3 * torch.rand(2, generator=generator))).long().tolist()
    other = torch.rot90(sample.rgb, 2, (1, 2)).roll(shift, (1, 2))
    return _with(sample, rgb=sample.rgb * (1 - region) + other * region, region=region)


def paint_scratch(sample: Sample, generator: torch.Generator) -> Sample:
    """Darken a thin bent line."""
    assert sample.rgb is not None
    H, W = sample.size
    t = torch.linspace(0, 1, 4 * H)[:, None]
    ends = (0.25 + 0.5 * torch.rand(3, 2, generator=generator)) * torch.tensor([H, W])
    line = (1 - t).square() * ends[0] + 2 * t * (1 - t) * ends[1] + t.square() * ends[2]
    region = torch.zeros(H, W)
    region[line[:, 0].long().clamp(0, H - 1), line[:, 1].long().clamp(0, W - 1)] = 1
    region = functional.max_pool2d(region[None], 2 * max(1, H // 200) + 1, 1, max(1, H // 200))[0]
    return _with(sample, rgb=(sample.rgb * (1 - 0.6 * region)), region=region)


def paint_dent(sample: Sample, generator: torch.Generator, low: float, high: float, sign: float = 1.0) -> Sample:
    """Push a blob away from (or, sign -1, towards) the camera by 30 to 80 % of its radius; a radius of low to high image sides."""
    assert sample.xyz is not None and sample.valid is not None
    radius = sample.size[0] * float(low + (high - low) * torch.rand(1, generator=generator))
    region, _ = blob(sample.size, radius, generator)
    x = sample.xyz[0][sample.valid]
    pitch = float(x.max() - x.min()) / max(1, int(sample.valid.any(0).sum()) - 1)  # metres a pixel
    depth = sign * radius * pitch * float(0.3 + 0.5 * torch.rand(1, generator=generator))
    # Smooth walls over a third of the radius, a flat floor.
    steps = max(3, int(radius / 3)) | 1
    soft = functional.avg_pool2d(region[None], steps, 1, steps // 2, count_include_pad=False)[0]
    xyz = sample.xyz.clone()
    xyz[2] += torch.where(sample.valid, depth * soft, 0.0)
    return _with(sample, xyz=xyz, region=torch.where(sample.valid, soft, 0.0))


PAINTERS: dict[str, tuple[str, Callable[[Sample, torch.Generator], Sample]]] = {
    "tone": ("rgb", paint_tone),
    "piece": ("rgb", paint_piece),
    "scratch": ("rgb", paint_scratch),
    "dent": ("xyz", lambda sample, generator: paint_dent(sample, generator, 0.04, 0.08)),
    "wide_dent": ("xyz", lambda sample, generator: paint_dent(sample, generator, 0.12, 0.25)),
    "bump": ("xyz", lambda sample, generator: paint_dent(sample, generator, 0.04, 0.12, -1.0)),
}


def _with(sample: Sample, region: Tensor, rgb: Tensor | None = None, xyz: Tensor | None = None) -> Sample:
    changed = {"rgb": sample.rgb if rgb is None else rgb, "xyz": sample.xyz if xyz is None else xyz}
    return replace(sample, **changed, mask=region > 0.5, label=1)


def main() -> None:
    """Write the tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mvtec3d")
    parser.add_argument("--root", required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train = mm3dad.open_dataset(arguments.dataset, arguments.root, arguments.category, "train")
    try:
        spare = list(mm3dad.open_dataset(arguments.dataset, arguments.root, arguments.category, "validation"))
    except mm3dad.errors.DataError:
        spare = []
    out, folder = Path(arguments.out), Path(arguments.category)
    for number in range(len(train)):
        if number % 3 == 2:
            spare.append(train[number])
        else:
            write_sample(out, folder / "train" / "good", f"{number:03d}", train[number], has_mask=False)
    for number, sample in enumerate(spare):
        write_sample(out, folder / "test" / "good", f"{number:03d}", sample, has_mask=False)
        for place, (name, (modality, paint)) in enumerate(PAINTERS.items()):
            if modality in sample.modalities:
                generator = torch.Generator().manual_seed(arguments.seed * 10**6 + number * 100 + place)
                write_sample(out, folder / "test" / name, f"{number:03d}", paint(sample, generator), has_mask=True)


if __name__ == "__main__":
    main()
