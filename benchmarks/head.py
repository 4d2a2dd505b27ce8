"""Does a segmentation head gain from the defects it is trained on? One small head on frozen features, trained on none, on noise, on `dual`.

    python -m benchmarks.head --root data/synthetic --category gasket --category potato --category deep_rim [--json FILE]
    python -m benchmarks.head --root data/synthetic --category potato --seed 1 --defects 36

What the head sees of a cell is what is left of its image and point features once the most similar normal ones are taken off. Without
training the map is the length of that residual, the mean over both modalities in units of held-out normal cells. Trained, a layer of
hidden units and a linear one (a 1 x 1 convolution of the grid of cells) read the same residuals; only the defects differ: noise in
Perlin masks, or those of `mm3dad synthesize dual`. A third of the defects is in the image alone, a third in the cloud alone.
Nothing looks at the test samples before they are scored. Pixel AP is also told by kind of defect, its samples beside the good ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import mm3dad
from mm3dad import files
from mm3dad.memory.coreset import select_coreset
from mm3dad.memory.flat import FlatBank
from mm3dad.memory.labelled import mask_cells
from mm3dad.methods._registered import Registered, RegisteredConfig, RegisteredSource
from mm3dad.metrics import average_precision
from mm3dad.metrics.bundle import image_metrics, pixel_metrics
from mm3dad.nets.training import Task, TrainingSettings, split_normals, train
from mm3dad.scoring.maps import smooth_map, upsample_map
from mm3dad.synthesis import find_part, move_along_rays, perlin_mask
from mm3dad.synthesis.synthesizers import DualModal
from mm3dad.types import Sample

MODALITIES = ("rgb", "xyz")
SENSES = (MODALITIES, ("rgb",), ("xyz",))  # in turn: what a drawn defect is seen by
CORESET, HIDDEN, EPOCHS, STEPS, BATCH, RATE, SIGMA, SIDE = 0.1, 32, 20, 20, 512, 1e-3, 4.0, 224
SHOWN = ("image_auroc", "pixel_ap", "aupro_30")
Draw = Callable[[Sample, torch.Generator], Sample]


def draw_noise(sample: Sample, generator: torch.Generator) -> Sample:
    """Put white noise into a Perlin mask: any colour, and depths off by up to a fifth of the part's range, as far as `dual` moves them."""
    assert sample.rgb is not None and sample.xyz is not None
    part = find_part(sample)
    mask = perlin_mask(part, generator)
    extent = sample.xyz[:, part].amax(1) - sample.xyz[:, part].amin(1)
    scale = 0.2 * max(float(extent[2]), 0.1 * float(extent.max()), 1e-6)
    rgb = torch.where(mask, torch.rand(sample.rgb.shape, generator=generator), sample.rgb)
    depth = sample.xyz[2] + mask * scale * (2 * torch.rand(sample.size, generator=generator) - 1)
    return replace(sample, rgb=rgb, xyz=move_along_rays(sample.xyz, depth), mask=mask, label=1)


def draw_dual(sample: Sample, generator: torch.Generator) -> Sample:
    """Draw a defect of `dual`."""
    return DualModal().make(sample, generator)


DRAWN: dict[str, Draw] = {"noise": draw_noise, "dual": draw_dual}


class Residuals:
    """Frozen features of both modalities on one grid, and what of them no normal sample explains.

    Args:
        normals: training samples.
        cache: folder of features, "" for none.
    """

    def __init__(self, normals: Sequence[Sample], cache: str = "") -> None:
        self._source = RegisteredSource("head", RegisteredConfig(feature_cache=cache))
        found = [self._source.describe(sample) for sample in normals]
        self.grid = found[0].grid
        self._scale = self._source.find_scale(found)
        self._banks: dict[str, FlatBank] = {}
        for name in MODALITIES:
            bank = FlatBank()
            for sample, one in zip(normals, found, strict=True):
                bank.add(sample.meta.id, getattr(one.rescale(self._scale), name))
            bank.seal()
            self._banks[name] = bank.thin(select_coreset(bank.rows.float(), max(1, int(CORESET * len(bank.rows)))))
        left = [self.measure(sample, number) for number, sample in enumerate(normals)]
        self.ordinary = torch.stack([torch.cat([one[name].norm(dim=1) for one in left]).mean() for name in MODALITIES])
        rows = torch.cat([self.join(one) for one in left])
        self.middle, self.spread = rows.mean(0), rows.std(0).clamp_min(1e-6)

    def measure(self, sample: Sample, without: int | None = None) -> dict[str, Tensor]:
        """Return |feature - nearest normal one| (P, C) per modality, of a training sample without its own rows."""
        found: Registered = self._source.describe(sample).rescale(self._scale)
        left = {}
        for name in MODALITIES:
            bank = self._banks[name] if without is None else self._banks[name].without(without)
            rows = bank.normalise(getattr(found, name))
            left[name] = (rows - bank.rows[bank.match(rows)[1]].float()).abs()
        return left

    @staticmethod
    def join(left: dict[str, Tensor]) -> Tensor:
        """Put both modalities and their lengths side by side, (P, C + C' + 2)."""
        return torch.cat([*left.values(), *(one.norm(dim=1, keepdim=True) for one in left.values())], dim=1)

    def plain(self, left: dict[str, Tensor]) -> Tensor:
        """Return the score of each cell (P,) without training."""
        return (torch.stack([left[name].norm(dim=1) for name in MODALITIES], dim=1) / self.ordinary).mean(1)

    def read(self, left: dict[str, Tensor]) -> Tensor:
        """Return the head's input (P, C''): in units of normal cells, large ones by their logarithm, lest a few decide the training."""
        units = (self.join(left) - self.middle) / self.spread
        return units.sign() * units.abs().log1p()


def alter(sample: Sample, draw: Draw, senses: Sequence[str], generator: torch.Generator) -> Sample:
    """Draw a defect and keep it in some modalities alone."""
    made = draw(sample, generator)
    kept = {name: getattr(made if name in senses else sample, name) for name in MODALITIES}
    mask = torch.stack([(kept[name] != getattr(sample, name)).any(0) for name in MODALITIES]).any(0)
    # Without files of its own the altered sample is not taken for the normal one by a cache of features.
    return replace(made, **kept, mask=mask, meta=replace(sample.meta, paths={}))


def draw_cells(
    residuals: Residuals, normals: Sequence[Sample], pool: Sequence[int], count: int, draw: Draw, seed: int
) -> tuple[Tensor, ...]:
    """Draw defects on samples of the pool: inputs of cells (N, C), and which are of a defect (N,) bool."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = [], []
    for number in range(count):
        position = pool[number % len(pool)]
        sample = normals[position]
        altered = alter(sample, draw, SENSES[number % 3], generator)
        assert altered.mask is not None
        anomalous, normal = mask_cells(altered.mask, residuals.grid)
        known = anomalous | normal
        inputs.append(residuals.read(residuals.measure(altered, position))[known])
        labels.append(anomalous[known])
    return torch.cat(inputs), torch.cat(labels)


def train_head(residuals: Residuals, normals: Sequence[Sample], draw: Draw, defects: int, seed: int) -> nn.Module:
    """Train a head on so many defects; defects drawn on a fifth of the samples choose its epoch."""
    learned, judged = split_normals(len(normals), 0.2, seed)
    inputs, labels = draw_cells(residuals, normals, learned, defects, draw, seed)
    held = draw_cells(residuals, normals, judged, max(1, defects // 4), draw, seed + 1)
    kinds = [(labels == kind).nonzero()[:, 0] for kind in (False, True)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(inputs.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def batches(epoch: int, generator: torch.Generator) -> list[Tensor]:
        draws = [kind[torch.randint(len(kind), (STEPS, BATCH // 2), generator=generator)] for kind in kinds]
        return list(torch.cat(draws, dim=1))

    def weigh(rows: Tensor, truth: Tensor) -> Tensor:
        """Return the cross entropy, both kinds of cells of one weight."""
        losses = functional.binary_cross_entropy_with_logits(head(rows)[:, 0], truth.float(), reduction="none")
        return (losses[truth].mean() + losses[~truth].mean()) / 2

    task = Task(
        "head", {"cells": len(inputs)}, {"head": head}, lambda: torch.optim.Adam(head.parameters(), RATE, weight_decay=1e-4), EPOCHS,
        batches, lambda chosen: {"loss": weigh(inputs[chosen], labels[chosen])}, lambda: float(weigh(*held)),
    )  # fmt: skip
    train(task, TrainingSettings(seed))
    return head.eval()


@torch.no_grad()
def judge(
    residuals: Residuals, score: Callable[[dict[str, Tensor]], Tensor], left: Sequence[dict[str, Tensor]], test: Sequence[Sample]
) -> Any:
    """Return the metrics of a test set whose residuals are given, and pixel AP by kind of defect."""
    maps = [smooth_map(upsample_map(score(one).view(residuals.grid), (SIDE, SIDE)), SIGMA) for one in left]
    masks = []
    for sample in test:
        mask = torch.zeros(sample.size, dtype=torch.bool) if sample.mask is None else sample.mask
        masks.append(functional.interpolate(mask[None, None].float(), (SIDE, SIDE), mode="nearest-exact")[0, 0] > 0)
    labels = torch.tensor([sample.label for sample in test])
    found = {**image_metrics(torch.stack([one.max() for one in maps]), labels), **pixel_metrics(torch.stack(maps), torch.stack(masks))}
    kinds = sorted({str(sample.meta.defect) for sample in test if sample.label})
    shown = {kind: [i for i, sample in enumerate(test) if not sample.label or sample.meta.defect == kind] for kind in kinds}
    pixels = [torch.stack(part).flatten(1) for part in (maps, masks)]
    by_kind = {kind: average_precision(*(part[chosen].flatten() for part in pixels)) for kind, chosen in shown.items()}
    return {name: found[name] for name in SHOWN} | {"pixel_ap_by_kind": by_kind}


def measure(root: str | Path, category: str, seed: int, defects: int = 120, cache: str = "") -> dict[str, Any]:
    """Return the metrics of one category by what the head was trained on."""
    train_set, test_set = (
        mm3dad.open_dataset("synthetic", str(root), category, split, modalities=MODALITIES) for split in ("train", "test")
    )
    normals, test = list(train_set), list(test_set)
    residuals = Residuals(normals, cache)
    heads = {name: train_head(residuals, normals, draw, defects, seed) for name, draw in DRAWN.items()}
    left = [residuals.measure(sample) for sample in test]
    rows = {"none": judge(residuals, residuals.plain, left, test)}
    for name, head in heads.items():
        rows[name] = judge(residuals, lambda one, head=head: head(residuals.read(one))[:, 0].sigmoid(), left, test)
    return rows


def main() -> None:
    """Measure each category and print a line for each set of defects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--category", action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--defects", type=int, default=120, help="to learn from")
    parser.add_argument("--cache", default="", help="folder in which features are kept between runs")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    found = {}
    for category in arguments.category:
        start = time.perf_counter()
        found[category] = measure(arguments.root, category, arguments.seed, arguments.defects, arguments.cache)
        for name, row in found[category].items():
            print(f"{category}, trained on {name}: " + ", ".join(f"{key} {row[key]:.3f}" for key in SHOWN), flush=True)
            print("  pixel_ap " + ", ".join(f"{kind} {value:.3f}" for kind, value in row["pixel_ap_by_kind"].items()), flush=True)
        print(f"{category}: {time.perf_counter() - start:.0f} s", flush=True)
    if arguments.json:
        files.write_json(arguments.json, {"seed": arguments.seed, "defects": arguments.defects, "categories": found})


if __name__ == "__main__":
    main()
