"""What cfm and mentor3ad share: training on cells of normal samples, the scale that held-out ones set, and maps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import DataError, TrainingError
from mm3dad.fusion.mapping import join_product, published_divisors
from mm3dad.methods._config import MODALITIES, check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress, strip_prefix
from mm3dad.methods._registered import Grid, Registered, RegisteredConfig, RegisteredSource, Scale
from mm3dad.nets.mapping import code_places
from mm3dad.nets.training import Task, TrainingSettings, shuffle_batches, split_normals, train
from mm3dad.scoring.calibrate import Calibration
from mm3dad.scoring.heldout import lift
from mm3dad.scoring.maps import smooth_boxes, upsample_map
from mm3dad.types import Prediction, Sample

Rows = tuple[Tensor, Tensor, Tensor]  # image and point features and the code of the place, of the same cells
LEAST_STEPS = 20  # gradient steps of an epoch
CANVAS = 224  # side of the square with as many pixels as the map that is smoothed; the boxes are made for it


@dataclass(frozen=True)
class MappingConfig(RegisteredConfig):
    """Settings of both methods."""

    depth: int = option(3, "linear layers of each mapping; published: 3, and 7 on Eyecandies")
    hidden: int = option(384, "least width of the hidden layers; 0 and reference=true: the mean of input and output, as published")
    anchor: float = option(
        0.0, "constant channel of both features, where the direction of a cell like most would be noise; 0 and reference=true: none"
    )
    place: int = option(6, "octaves of the code of a cell's place that the mappings see; 0 and reference=true: none, as published")
    epochs: int = option(40, "most passes over the training cells; published: 50 in the script, 250 in the runs of the paper")
    rate: float = option(1e-3, "learning rate of Adam")
    batch: int = option(1024, "cells per gradient step")
    held_out: float = option(0.1, "share of the normal samples kept from training, to stop early and to set the scale")
    patience: int = option(5, "epochs without a better held-out loss after which training stops; 0 never stops")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, (
            ("depth", 2, 64), ("hidden", 0, 10**5), ("anchor", 0.0, 1e6), ("place", 0, 16), ("epochs", 1, 10**6), ("rate", 1e-12, math.inf),
            ("batch", 2, 10**7), ("held_out", 0.0, 0.9), ("patience", 0, 10**6),
        ))  # fmt: skip


class MappingDetector(Detector):
    """A detector that scores how far the modalities deny each other. Subclasses fill `_build`, `_learn` and `_compare`."""

    config: Any
    needs = Needs(inputs=MODALITIES, settings=("one-class", "few-shot", "multi-class"), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._source = RegisteredSource(self.name, self.config)
        self._nets: dict[str, nn.Module] = {}
        self._scale: Scale = {}
        self._units: dict[str, Calibration] = {}

    @abstractmethod
    def _build(self, rgb: int, xyz: int, place: int) -> dict[str, nn.Module]:
        """Make the untrained networks for these widths."""

    @abstractmethod
    def _learn(self, rows: Rows, held_out: Rows | None, report: Progress) -> None:
        """Train the networks."""

    @abstractmethod
    def _compare(self, found: Registered, place: Tensor) -> dict[str, Tensor]:
        """Return the residual (P,) of each voter, zeros where no point is held."""

    @property
    def weights(self) -> list[dict[str, Any]]:
        return self._source.weights

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Detector:
        if len(samples) == 0:
            raise DataError(f"{self.name} needs at least one normal sample, got none; check the training folder")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted = False
        found = []
        for number in range(len(samples)):
            report("features", number, len(samples))
            found.append(self._source.describe(samples[number]).half())
        learned, held_out = split_normals(len(found), self.config.held_out, self.config.seed)
        self._scale = self._source.find_scale([found[i] for i in learned])
        rows = self._gather([found[i] for i in learned])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._nets = self._build(rows[0].shape[1], rows[1].shape[1], rows[2].shape[1])
        self._learn(rows, self._gather([found[i] for i in held_out]) if held_out else None, report)
        judged = [self._bring_to_scale(found[i]) for i in held_out or learned]
        self._units = self._find_units(judged)
        self.is_fitted = True
        self._set_threshold(validation, report, (self._judge(one)[0] for one in (judged if held_out else [])))
        return self

    @property
    def _anchor(self) -> float:
        return 0.0 if self.config.reference else float(self.config.anchor)

    def _bring_to_scale(self, found: Registered) -> Registered:
        """Return features that cosines can compare."""
        found = found.rescale(self._scale)
        if not self._anchor:
            return found
        rgb, xyz = (F.pad(rows, (0, 1), value=self._anchor) for rows in (found.rgb, found.xyz))
        return replace(found, rgb=rgb, xyz=xyz)

    def _place(self, grid: Grid) -> Tensor:
        return code_places(grid, 0 if self.config.reference else self.config.place)

    def _gather(self, found: Sequence[Registered]) -> Rows:
        """Return the rows of all cells that hold a point."""
        parts = [(self._bring_to_scale(one), self._place(one.grid)) for one in found]
        rgb, xyz, place = zip(*((one.rgb[one.held], one.xyz[one.held], place[one.held]) for one, place in parts), strict=True)
        return torch.cat(rgb), torch.cat(xyz), torch.cat(place)

    def _train(
        self, name: str, rows: Rows, held_out: Rows | None, loss: Callable[..., dict[str, Tensor]], epochs: int, report: Progress
    ) -> None:
        """Train one network; `loss` takes rows."""
        c = self.config
        net = self._nets[name]
        task = Task(
            name,
            {"method": self.name, "rate": c.rate, "batch": c.batch, "cells": len(rows[0])},
            {name: net},
            lambda: torch.optim.Adam(net.parameters(), c.rate),
            epochs,
            lambda epoch, generator: self._draw(len(rows[0]), generator),
            lambda chosen: loss(*(part[chosen.to(part.device)].to(c.device) for part in rows)),
            None if held_out is None else lambda: self._weigh(held_out, loss),
        )
        history = train(task, TrainingSettings(c.seed, patience=c.patience, device=c.device), self.training, report)
        net.cpu()
        if history.start is not None and history.best == 0:
            raise TrainingError(
                f"{self.name} learned nothing: no epoch of its {name} improved on the untrained network's held-out loss of "
                f"{history.start:.4g}; lower the learning rate ({c.rate:g}), or check that image and cloud are in register"
            )

    def _draw(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Return the batches of an epoch; few cells are gone through several times, or few shots would mean few steps."""
        batches: list[Tensor] = []
        while len(batches) < LEAST_STEPS:
            batches += shuffle_batches(count, self.config.batch, generator)
        return batches

    def _weigh(self, rows: Rows, loss: Callable[..., dict[str, Tensor]]) -> float:
        """Return the mean loss over batches of held-out rows, the same ones each time."""
        c = self.config
        batches = shuffle_batches(len(rows[0]), c.batch, torch.Generator().manual_seed(c.seed))
        losses = [sum(float(term) for term in loss(*(part[chosen].to(c.device) for part in rows)).values()) for chosen in batches]
        return sum(value * len(chosen) for value, chosen in zip(losses, batches, strict=True)) / len(rows[0])

    @torch.no_grad()
    def _find_units(self, judged: Sequence[Registered]) -> dict[str, Calibration]:
        """Find the scale of each voter on cells of normal samples."""
        values: dict[str, list[Tensor]] = {}
        for one in judged:
            for name, residual in self._compare(one, self._place(one.grid)).items():
                values.setdefault(name, []).append(residual[one.held])
        return {name: Calibration.fit(torch.cat(parts)) for name, parts in values.items()}

    @torch.no_grad()
    def _judge(self, found: Registered) -> tuple[float, Tensor, dict[str, Tensor]]:
        """Return the score, and the map and the voters' maps on a canvas of the grid's shape."""
        residuals = self._compare(found, self._place(found.grid))
        is_published = self.config.reference
        if not is_published:
            # 1 is ordinary, so that a modality which sees nothing leaves the other's word as it is.
            units = self._units
            residuals = {name: lift((value - units[name].location) / units[name].scale) * found.held for name, value in residuals.items()}
        height, width = (max(1, round(side * CANVAS / math.sqrt(found.grid[0] * found.grid[1]))) for side in found.grid)
        maps = {
            name: smooth_boxes(upsample_map(value.view(found.grid), (height, width)), zero_padded=is_published)
            for name, value in {**residuals, "": join_product(list(residuals.values()))}.items()
        }
        heat = maps.pop("")
        aupro, _, image = published_divisors(heat) if is_published else (1.0, 1.0, 1.0)
        return float(heat.max()) / image, heat / aupro, maps

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        return [self._predict_one(sample) for sample in samples]

    def _predict_one(self, sample: Sample) -> Prediction:
        score, heat, maps = self._judge(self._bring_to_scale(self._source.describe(sample)))
        pixels, *parts = (upsample_map(value, sample.size).clamp_min(0) for value in (heat, *maps.values()))
        named = {f"{name}_map": part for name, part in zip(maps, parts, strict=True)}
        return self._conclude(sample, score, pixels, named)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{name}.{key}": value for name, net in self._nets.items() for key, value in net.state_dict().items()}
        for name, (shift, factor) in self._scale.items():
            tensors |= {f"{name}.shift": shift, f"{name}.factor": factor}
        return tensors, {"threshold": self._threshold, "units": {name: unit.to_dict() for name, unit in self._units.items()}}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._scale = {name: (tensors[f"{name}.shift"], tensors[f"{name}.factor"]) for name in MODALITIES}
        self._units = {name: Calibration.from_dict(unit) for name, unit in values["units"].items()}
        self._threshold = values["threshold"]
        rgb, xyz = (len(self._scale[name][0]) + (self._anchor > 0) for name in MODALITIES)
        self._nets = self._build(rgb, xyz, self._place((1, 1)).shape[1])
        for name, net in self._nets.items():
            net.load_state_dict(strip_prefix(tensors, f"{name}."))
            net.eval()
