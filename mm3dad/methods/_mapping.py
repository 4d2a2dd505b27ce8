"""What cfm and mentor3ad share: features of both modalities cell by cell, their scale, held-out normal samples, maps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mm3dad.errors import DataError, TrainingError
from mm3dad.features.branches import Patches, patch_grid
from mm3dad.features.cache import Describes, keep_features
from mm3dad.features.patchmaps import ImagePatches, PointPatches
from mm3dad.features.pixelmap import PointCells
from mm3dad.features.rgb import stack_layers
from mm3dad.fusion.mapping import published_divisors
from mm3dad.methods._config import MODALITIES, check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress
from mm3dad.nets.training import Task, TrainingSettings, shuffle_batches, split_normals, train
from mm3dad.scoring.calibrate import threshold_for_rate
from mm3dad.scoring.maps import smooth_boxes, upsample_map
from mm3dad.types import Prediction, Sample

Grid = tuple[int, int]
Pairs = tuple[Tensor, Tensor]
CELL = 8  # pixels of the image a cell of `patch_grid` covers
RANGES = (
    ("image_size", 64, 4096),
    ("fineness", 1, 8),
    ("max_points", 128, 10**7),
    ("centers", 1, 10**6),
    ("group_size", 4, 10**5),
    ("epochs", 1, 10**6),
    ("rate", 0.0, math.inf),
    ("batch", 2, 10**7),
    ("held_out", 0.0, 0.9),
    ("patience", 0, 10**6),
    ("false_alarms", 1e-9, 0.999),
    ("seed", 0, 2**62),
)


@dataclass(frozen=True)
class MappingConfig:
    """Settings of both methods."""

    image_size: int = option(224, "side of the square with as many pixels as the network's input")
    fineness: int = option(2, "cells a side for one of a stride-8 image grid; published: 8 (224 x 224)")
    backbone: str = option("efficientnet_lite0", "row of `mm3dad list weights`, or any timm architecture; published: dino_vitb8")
    layers: tuple[int, ...] = option((), "layers of the backbone, negative from the end; empty uses the table's")
    weights: str = option("default", "default, the path of a state dict, or random")
    points: Literal["fpfh", "point_mae"] = option("fpfh", "point features: FPFH or Point-MAE tokens; published: point_mae")
    point_weights: str = option("default", "path of a Point-MAE checkpoint, or default for the cache")
    max_points: int = option(10000, "most points of a cloud; reference=true takes all of the square of image_size")
    centers: int = option(1024, "point groups per cloud (Point-MAE)")
    group_size: int = option(128, "points per group (Point-MAE)")
    epochs: int = option(50, "most passes over the training patches; published: 50 in the script, 250 in the paper's runs")
    rate: float = option(1e-3, "learning rate of Adam")
    batch: int = option(2048, "places per gradient step")
    held_out: float = option(0.1, "share of the normal samples kept from training, to stop early and to set the scale")
    patience: int = option(10, "epochs without a better held-out loss after which training stops; 0 never stops")
    reference: bool = option(False, "as the published code does it, with its quirks; see the method's page")
    false_alarms: float = option(0.01, "rate of false alarms the threshold aims at")
    feature_cache: str = option("", "folder in which features are kept between runs; empty keeps none")
    seed: int = option(0, "of initial weights, batches and the choice of held-out samples")
    device: str = option("cpu", "torch device of the backbone and of the training")

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)


@dataclass(frozen=True)
class Registered:
    """Image and point features of the same cells: rgb (P, C), xyz (P, C'), which cells hold a point (P,) bool, and their grid."""

    rgb: Tensor
    xyz: Tensor
    held: Tensor
    grid: Grid


class MappingDetector(Detector):
    """A detector that scores how far the modalities deny each other. Subclasses fill `_build`, `_learn`, `_compare` and `_join`."""

    config: Any
    needs = Needs(inputs=MODALITIES, settings=("one-class", "few-shot", "multi-class"), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made: dict[str, Describes[Patches]] = {}
        self._nets: dict[str, nn.Module] = {}
        self._scale: dict[str, tuple[Tensor, Tensor]] = {}
        self._units: dict[str, float] = {}
        self._threshold: float | None = None

    @abstractmethod
    def _build(self, rgb_channels: int, xyz_channels: int) -> dict[str, nn.Module]:
        """Make the untrained networks."""

    @abstractmethod
    def _learn(self, pairs: Pairs, held_out: Pairs | None, report: Progress) -> None:
        """Train the networks on rows (P, C) and (P, C') of the same places."""

    @abstractmethod
    def _compare(self, found: Registered) -> dict[str, Tensor]:
        """Return the residual (P,) of each voter, zeros where no point is held."""

    @abstractmethod
    def _join(self, residuals: list[Tensor]) -> Tensor:
        """Make one map of the voters' residuals, each in units of the ordinary."""

    def _extractor(self, name: str) -> Describes[Patches]:
        """Return the extractor of a modality, made when it is first needed."""
        c = self.config
        if name not in self._made:
            made: Describes[Patches]
            kept: tuple[object, ...]
            if name == "rgb":
                kept = c.image_size, c.fineness, c.backbone, c.layers, c.weights
                made = ImagePatches(self._place, c.image_size, c.backbone, c.layers, c.weights, c.device, c.seed)
            else:
                side = c.image_size if c.reference else min(c.image_size, math.isqrt(c.max_points))
                kept = c.points, side, c.centers, c.group_size, c.reference, c.fineness, c.image_size
                cells = PointCells(c.points, c.point_weights, side, c.centers, c.group_size, c.reference)
                made = PointPatches(cells, c.image_size, c.fineness)
            self._made[name] = keep_features(made, Patches, c.feature_cache, "mapping", name, kept)
        return self._made[name]

    def _place(self, layers: list[Tensor], cells: Grid) -> Tensor:
        """Bring the layers of an image to the grid of the point features."""
        return stack_layers(layers, (cells[0] * self.config.fineness, cells[1] * self.config.fineness))

    @property
    def weights(self) -> list[dict[str, Any]]:
        return [row for name in MODALITIES for row in self._extractor(name).weights]

    def _describe(self, sample: Sample) -> Registered:
        for name in MODALITIES:
            if name not in sample.modalities:
                raise DataError(f"sample {sample.meta.id!r} has no {name}, and {self.name} compares both; complete it, or use duet")
        rgb, xyz = (self._extractor(name).describe([sample])[0] for name in MODALITIES)
        # The published test takes a feature that happens to sum to 0 for the background.
        held = xyz.features.sum(1) != 0 if self.config.reference else (xyz.features != 0).any(1)
        found = Registered(rgb.features, xyz.features, held, xyz.grid)
        return self._rescale(found) if self._scale else found

    def _rescale(self, found: Registered) -> Registered:
        rows = {name: (getattr(found, name).float() - shift) * factor for name, (shift, factor) in self._scale.items()}
        return Registered(rows["rgb"], rows["xyz"], found.held, found.grid)

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Detector:
        if len(samples) == 0:
            raise DataError(f"{self.name} needs at least one normal sample, got none; check the training folder")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted, self._scale, self._units = False, {}, {}
        found = []
        for number in range(len(samples)):
            report("features", number, len(samples))
            one = self._describe(samples[number])
            found.append(Registered(one.rgb.half(), one.xyz.half(), one.held, one.grid))
        learned, held_out = split_normals(len(found), self.config.held_out, self.config.seed)
        self._scale = self._find_scale([found[i] for i in learned])
        pairs = self._gather([found[i] for i in learned])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._nets = self._build(pairs[0].shape[1], pairs[1].shape[1])
        self._learn(pairs, self._gather([found[i] for i in held_out]) if held_out else None, report)
        judged = [self._rescale(found[i]) for i in held_out or learned]
        self._units = self._find_units(judged)
        self.is_fitted = True
        scores = [self._judge(one, (224, 224))[0] for one in judged] if held_out else []
        if validation is not None and len(validation):
            scores = []
            for number in range(len(validation)):
                report("validation", number, len(validation))
                scores.append(self.predict(validation[number]).score)
        self._threshold = threshold_for_rate(torch.tensor(scores), self.config.false_alarms) if scores else None
        return self

    def _find_scale(self, found: Sequence[Registered]) -> dict[str, tuple[Tensor, Tensor]]:
        """Center each channel and bring it to unit spread, so that a cosine tells patches apart; as published, leave them as they are."""
        scale = {}
        for name in MODALITIES:
            rows = torch.cat([getattr(one, name)[one.held] for one in found]).float()
            if len(rows) < 2:
                raise DataError(f"{self.name} needs points in its training samples, got {len(rows)} cells with one; check the clouds")
            spread = rows.std(0, correction=0)
            # A channel that hardly varies would turn noise into a signal.
            factor = 1 / spread.clamp_min(1e-3 * float(spread.max())).clamp_min(1e-12)
            is_raw = self.config.reference
            scale[name] = (torch.zeros_like(factor), torch.ones_like(factor)) if is_raw else (rows.mean(0), factor)
        return scale

    def _gather(self, found: Sequence[Registered]) -> Pairs:
        rescaled = [self._rescale(one) for one in found]
        return torch.cat([one.rgb[one.held] for one in rescaled]), torch.cat([one.xyz[one.held] for one in rescaled])

    def _train(self, name: str, pairs: Pairs, held_out: Pairs | None, loss: Callable[[Tensor, Tensor], Any], epochs: int, report: Progress) -> None:
        """Train one network on pairs of rows; `loss` takes rows of both modalities."""
        c = self.config
        net = self._nets[name]
        weigh = (lambda: float(_total(loss(*(part.to(c.device) for part in held_out))))) if held_out is not None else None
        task = Task(
            name,
            {"method": self.name, "rate": c.rate, "batch": c.batch, "places": len(pairs[0])},
            {name: net},
            lambda: torch.optim.Adam(net.parameters(), c.rate),
            epochs,
            lambda epoch, generator: shuffle_batches(len(pairs[0]), c.batch, generator),
            lambda chosen: loss(*(part[chosen.cpu()].to(c.device) for part in pairs)),
            weigh,
        )
        history = train(task, TrainingSettings(c.seed, patience=c.patience, device=c.device), self.training, report)
        if history.start is not None and history.best == 0:
            raise TrainingError(
                f"{self.name} learned nothing: no epoch of {name} improved on the untrained network's held-out loss of "
                f"{history.start:.4g}; lower the learning rate ({c.rate:g}), or check that image and cloud are in register"
            )
        net.cpu()

    @torch.no_grad()
    def _find_units(self, judged: Sequence[Registered]) -> dict[str, float]:
        """Return what each voter's residual is on normal cells, on average."""
        sums: dict[str, float] = {}
        for one in judged:
            for name, residual in self._compare(one).items():
                sums[name] = sums.get(name, 0.0) + float(residual.sum())
        count = sum(int(one.held.sum()) for one in judged)
        return {name: max(value / max(1, count), 1e-6) for name, value in sums.items()}

    @torch.no_grad()
    def _judge(self, found: Registered, size: Grid) -> tuple[float, Tensor, dict[str, Tensor]]:
        """Return the score, the map (H, W) and the voters' maps."""
        is_published = self.config.reference
        canvas = tuple(side * CELL // self.config.fineness for side in found.grid)
        units = {name: value if is_published else value / self._units[name] for name, value in self._compare(found).items()}
        maps = {name: upsample_map(value.view(found.grid), canvas) for name, value in units.items()}
        heat = smooth_boxes(upsample_map(self._join(list(units.values())).view(found.grid), canvas), zero_padded=is_published)
        aupro, _, image = published_divisors(heat) if is_published else (1.0, 1.0, 1.0)
        parts = {f"{name}_map": upsample_map(smooth_boxes(value), size).clamp_min(0) for name, value in maps.items()}
        return float(heat.max()) / image, upsample_map(heat / aupro, size).clamp_min(0), parts

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        return [self._predict_one(sample) for sample in samples]

    def _predict_one(self, sample: Sample) -> Prediction:
        score, heat, parts = self._judge(self._describe(sample), sample.size)
        flag = None if self._threshold is None else score > self._threshold
        return Prediction(score, heat, parts, self._threshold, flag, self._threshold is not None, sample.meta)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"net.{name}.{key}": value for name, net in self._nets.items() for key, value in net.state_dict().items()}
        for name, (shift, factor) in self._scale.items():
            tensors |= {f"{name}.shift": shift, f"{name}.factor": factor}
        return tensors, {"threshold": self._threshold, "units": self._units}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._scale = {name: (tensors[f"{name}.shift"], tensors[f"{name}.factor"]) for name in MODALITIES}
        self._units, self._threshold = dict(values["units"]), values["threshold"]
        self._nets = self._build(*(len(self._scale[name][0]) for name in MODALITIES))
        for name, net in self._nets.items():
            start = f"net.{name}."
            net.load_state_dict({key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)})
            net.eval()


def _total(loss: Tensor | dict[str, Tensor]) -> Tensor:
    return loss if isinstance(loss, Tensor) else torch.stack(list(loss.values())).sum()
