"""How resad learns: labelled samples of other products beside references drawn anew each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mm3dad.features.pixelmap import FPFH_BLOCKS, fit_scale
from mm3dad.methods._detector import Progress
from mm3dad.nets.residual_flow import ResidualFlow
from mm3dad.nets.training import Task, TrainingRun, TrainingSettings, train
from mm3dad.scoring.residual import take_residual

STEPS = 10  # in an epoch
LOOKED_AT = 32  # auxiliary samples that say how large residuals are, and normal ones how likely a normal cell can be
Batch = tuple[list[int], list[list[int]], bool]  # samples, references of each, whether flows see anomalous cells
Scale = tuple[Tensor, Tensor]  # shift and factor (C,) of a level


@dataclass(frozen=True)
class Auxiliary:
    """One labelled sample: its levels, which cells are normal and which are known (P,) bool, and its product."""

    levels: list[Tensor]
    is_normal: Tensor
    is_known: Tensor
    category: str
    is_good: bool

    def scale(self, scales: Sequence[Scale]) -> Auxiliary:
        """Return the sample on a scale, in single precision."""
        return replace(self, levels=scale_levels(self.levels, scales))


def scale_levels(levels: Sequence[Tensor], scales: Sequence[Scale]) -> list[Tensor]:
    """Return levels (P, C), shifted and scaled channel by channel, in single precision."""
    return [(level.float() - shift) * factor for level, (shift, factor) in zip(levels, scales, strict=True)]


def draw_references(known: Sequence[Auxiliary], number: int, draws: int, generator: torch.Generator) -> list[int]:
    """Draw normal samples of a sample's product, with replacement; itself only where it is alone."""
    same = [i for i, one in enumerate(known) if one.is_good and one.category == known[number].category]
    others = [i for i in same if i != number] or same or [number]
    return [others[i] for i in torch.randint(len(others), (draws,), generator=generator).tolist()]


def join_cells(chosen: Sequence[Auxiliary]) -> list[Tensor]:
    """Put the cells of several samples together, per level (R, C)."""
    return [torch.cat(level) for level in zip(*(one.levels for one in chosen), strict=True)]


def leave_references(levels: Sequence[Tensor], references: Sequence[Tensor]) -> list[Tensor]:
    """Return the residuals of scaled levels (P, C) of a square grid to references (R, C), as maps (1, C, h, w)."""
    side = round(len(levels[0]) ** 0.5)
    return [take_residual(rows, others).T.reshape(1, -1, side, side) for rows, others in zip(levels, references, strict=True)]


def find_scales(known: Sequence[Auxiliary], modalities: Sequence[str], draws: int, seed: int) -> list[Scale]:
    """Return each level's scale: squared residuals are 1 on average; histograms and relief of a cloud are centred and balanced first.

    A backbone's layers keep their origin, as published: cosines between them already tell patches apart.
    """
    widths = [level.shape[1] for level in known[0].levels]
    scales = [(torch.zeros(width), torch.ones(width)) for width in widths]
    if "xyz" in modalities:  # the last level
        scales[-1] = fit_scale([one.levels[-1].float() for one in known if one.is_good], FPFH_BLOCKS)
    units = _measure_units(known, scales, draws, seed)
    return [(shift, factor / unit) for (shift, factor), unit in zip(scales, units, strict=True)]


def _measure_units(known: Sequence[Auxiliary], scales: Sequence[Scale], draws: int, seed: int) -> list[float]:
    """Return per level the size of residuals, the root of the mean of their squares."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in torch.linspace(0, len(known) - 1, min(len(known), LOOKED_AT)).long().tolist():
        references = join_cells([known[i] for i in draw_references(known, number, draws, generator)])
        levels = (scale_levels(part, scales) for part in (known[number].levels, references))
        found.append([float(residual.mean()) for residual in leave_references(*levels)])
    return [max(sum(level) / len(level), 1e-12) ** 0.5 for level in zip(*found, strict=True)]


def train_residuals(net: ResidualFlow, known: Sequence[Auxiliary], config: Any, run: TrainingRun, report: Progress) -> None:
    """Train in place on scaled samples.

    Args:
        config: resad's settings.

    Raises:
        TrainingError: the training diverged.
    """

    def batches(epoch: int, generator: torch.Generator) -> list[Batch]:
        drawn = []
        for _ in range(STEPS):
            chosen = torch.randint(len(known), (config.batch,), generator=generator).tolist()
            drawn.append((chosen, [draw_references(known, i, config.draws, generator) for i in chosen], epoch >= config.warm))
        return drawn

    def loss(batch: Batch) -> dict[str, Tensor]:
        chosen, references, both = batch
        pairs = zip(chosen, references, strict=True)
        residuals = [leave_references(known[i].levels, join_cells([known[j] for j in others])) for i, others in pairs]
        maps = [torch.cat(level).to(config.device) for level in zip(*residuals, strict=True)]
        grid = len(chosen), *maps[0].shape[2:]
        is_normal, is_known = (
            torch.stack([getattr(known[i], name) for i in chosen]).view(grid).to(config.device) for name in ("is_normal", "is_known")
        )
        return net.loss(maps, is_normal, is_known, both)

    settings = {name: getattr(config, name) for name in ("rate", "batch", "draws", "warm")}
    task = Task(
        "residuals",
        {"samples": len(known), **settings},
        {"net": net},
        lambda: torch.optim.Adam(net.parameters(), config.rate, weight_decay=5e-4),
        config.epochs,
        batches,
        loss,
    )
    train(task, TrainingSettings(config.seed, clip=1.0, device=config.device), run, report)
    net.cpu()
