"""glfm: a point extractor that learns from stretched surfaces, one model for all kinds of parts, banks behind a router. 3D only.

GLFM, "Multi-class 3D anomaly detection with global and local feature matching" (IEEE TASE 2025, arXiv 2505.07375; trained sheet, part 1).
Stage I trains the extractor to find synthetic stretches, stage II fills a global and local banks without class labels, stage III scores.
Differs from its code: the stretch keeps its seed and has no unit, only the part is looked at, a real Gaussian instead of an 8-bit blur, and
without a Point-MAE checkpoint a small transformer on FPFH statistics is trained from scratch; `reference=True` restores stretch and blur.
Weights: Point-MAE's licence is not stated by its authors; the small transformer has none from outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mm3dad.errors import ConfigError, DataError
from mm3dad.features.adapted import Extractor, read_cloud_groups, regroup_features, spread_to_part, take_part
from mm3dad.features.branches import load_point_net
from mm3dad.features.points import FPFH_STATISTICS
from mm3dad.memory.routed import RoutedBanks
from mm3dad.methods._config import check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress, strip_prefix
from mm3dad.nets.losses import dice_loss, focal_loss
from mm3dad.nets.point_transformer import DescriptorTransformer, PointTransformer
from mm3dad.nets.training import Task, TrainingSettings, train
from mm3dad.ops import three_interpolate
from mm3dad.ops.finite import is_finite
from mm3dad.scoring.calibrate import held_out_numbers
from mm3dad.scoring.maps import blur_8bit, smooth_map
from mm3dad.synthesis import find_part
from mm3dad.synthesis.synthesizers import Stretch, StretchConfig
from mm3dad.types import Prediction, Sample

HEADS = 4
MAE_DEPTH = 12
RANGES = (
    ("max_points", 128, 10**7),
    ("centers", 4, 10**6),
    ("group_size", 4, 10**5),
    ("dim", HEADS, 4096),
    ("depth", 1, 48),
    ("epochs", 0, 10**5),
    ("steps", 1, 10**6),
    ("rate", 1e-8, 1.0),
    ("prototypes", 0, 10**6),
    ("coreset", 0.0, 1.0),
    ("smooth", 0.0, 100.0),
    ("false_alarms", 1e-9, 0.999),
    ("seed", 0, 2**62),
)


@dataclass(frozen=True)
class Config:
    """Settings of `glfm`."""

    points: Literal["fpfh", "point_mae"] = option("fpfh", "extractor: a small one on FPFH statistics, from scratch, or Point-MAE's")
    point_weights: str = option("default", "path of a Point-MAE checkpoint, or default for the cache")
    max_points: int = option(4096, "most points of a part; published: all of 224 x 224")
    centers: int = option(256, "point groups per cloud; published: 1024")
    group_size: int = option(32, "points per group; published: 128")
    dim: int = option(96, "channels of the small extractor (fpfh)")
    depth: int = option(3, "blocks of the small extractor (fpfh)")
    layers: tuple[int, ...] = option((0, 1), "blocks whose tokens are compared, 0-based")
    epochs: int = option(12, "epochs of stage I; 0 leaves the extractor untrained; published: 100")
    steps: int = option(50, "stretched clouds in an epoch; published: 100")
    rate: float = option(1e-3, "highest learning rate of stage I; published, for Point-MAE: 1e-4")
    prototypes: int = option(0, "samples in the global bank; 0: one per category among the training samples")
    coreset: float = option(0.1, "share of the rows kept in each local bank")
    smooth: float = option(4.0, "Gaussian smoothing of the map, in pixels of a 224 x 224 image")
    false_alarms: float = option(0.01, "rate of false alarms the threshold aims at")
    reference: bool = option(False, "stretch and blur as the published code does them; see the method's page")
    seed: int = option(0, "of the weights and of the stretches")
    device: str = option("cpu", "torch device of the training")

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        if self.dim % HEADS:
            raise ConfigError(f"dim must be divisible by the {HEADS} attention heads, got {self.dim}")
        blocks = self.depth if self.points == "fpfh" else MAE_DEPTH
        if not self.layers or min(self.layers) < 0 or max(self.layers) >= blocks:
            raise ConfigError(f"layers must be blocks 0 to {blocks - 1} of the extractor, got {self.layers}")


class Glfm(Detector):
    """Adapted point features in a global and in local banks."""

    name = "glfm"
    Config = Config
    needs = Needs(inputs=("xyz",), settings=("one-class", "few-shot", "multi-class"), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._net: Extractor | None = None
        self._used: list[dict[str, Any]] = []
        self._banks: RoutedBanks
        self._has_table = True

    @property
    def weights(self) -> list[dict[str, Any]]:
        self._open_net()
        return self._used

    def _open_net(self) -> Extractor:
        """Return the extractor, made anew where there is none."""
        c = self.config
        if self._net is None and c.points == "point_mae":
            self._net, self._used = load_point_net(c.point_weights)
        elif self._net is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(c.seed)
                self._net = DescriptorTransformer(FPFH_STATISTICS, c.depth, c.dim, HEADS)
        assert self._net is not None
        return self._net

    def _find(self, sample: Sample) -> Tensor:
        if "xyz" not in sample.modalities:
            raise DataError(f"sample {sample.meta.id!r} has no xyz, and glfm sees points alone; use patchcore for images")
        assert sample.valid is not None
        return find_part(sample) if self._has_table else sample.valid

    def _take(self, sample: Sample, part: Tensor) -> Tensor:
        return take_part(sample, part, self.config.max_points, self.config.group_size)

    def _read(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return read_cloud_groups(points, self._open_net(), self.config.centers, self.config.group_size)

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Detector:
        if len(samples) == 0:
            raise DataError("glfm needs at least one normal sample, got none; check the training folder")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted, self._net, self._has_table = False, None, True
        clouds, ids, categories, apart = [], [], set(), 0
        for number in range(len(samples)):
            report("reading", number, len(samples))
            sample = samples[number]
            part = self._find(sample)
            apart += not torch.equal(part, sample.valid)  # type: ignore[arg-type]
            clouds.append(self._take(sample, part))
            ids.append(sample.meta.id)
            categories.add(sample.meta.category)
        # Parts that fill the picture: what stands out of it on a test sample is a defect, and no part on a table.
        self._has_table = 2 * apart > len(samples)
        net = self._open_net()
        if isinstance(net, DescriptorTransformer):
            net.standardise(torch.cat([self._read(points)[0] for points in clouds]))
        if self.config.epochs:
            self._adapt(clouds, report)
        found = []
        for number, points in enumerate(clouds):
            report("features", number, len(clouds))
            found.append(self._describe(points))
        report("coreset", 0, 1)
        rows = [features for _, features in found]
        count = self.config.prototypes or len(categories)
        self._banks = RoutedBanks.build(torch.stack([one.mean(0) for one in rows]), rows, ids, count).thin(self.config.coreset)
        self._threshold = None
        self.is_fitted = True

        def hold_out() -> Iterator[float]:
            held = held_out_numbers(len(samples))
            for done, i in enumerate(held):
                report("held-out scores", done, len(held))
                sample = samples[i]
                yield self._judge(sample, self._find(sample), *found[i], without=i)[0]

        self._set_threshold(validation, report, hold_out())
        return self

    def _adapt(self, clouds: list[Tensor], report: Progress) -> None:
        """Stage I: learn to tell the points of a stretch from those of the part."""
        c = self.config
        net = self._open_net().requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(c.seed)
            head = nn.Linear(int(net.norm.normalized_shape[0]), 2)
        last = (c.depth if c.points == "fpfh" else MAE_DEPTH) - 1
        stretch = Stretch(StretchConfig(reference=c.reference))

        def batches(epoch: int, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
            picks = torch.randint(len(clouds), (c.steps,), generator=generator).tolist()
            altered = [stretch.alter(clouds[i], generator) for i in picks]
            return [(*self._read(points), points, mask) for points, mask in altered]

        def loss(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
            groups, middle, center, points, mask = batch
            tokens = net(groups, middle, (last,))[0]
            if not is_finite(tokens):  # the loop names a training that diverged; the interpolation would blame the cloud
                return {"focal": tokens.new_tensor(math.nan)}
            probability = head(three_interpolate(points, points[center], tokens)).softmax(1)[:, 1]
            return {"focal": focal_loss(probability, mask), "dice": dice_loss(probability, mask)}

        total = c.epochs * c.steps
        task = Task(
            "stage1",
            {"clouds": len(clouds)},
            {"net": net, "head": head},
            lambda: torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=c.rate),
            c.epochs,
            batches,
            loss,
            rate=lambda step: min(1.0, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / total)),
        )
        train(task, TrainingSettings(seed=c.seed, clip=1.0, device=c.device), self.training, report, "stage I")
        net.cpu().requires_grad_(False)

    @torch.inference_mode()
    def _describe(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places (G, 3) of a part's regions and their features (G, C)."""
        c = self.config
        groups, middle, center = self._read(points)
        tokens = torch.cat(self._open_net()(groups, middle, c.layers), dim=1)
        places, features = regroup_features(points, points[center], tokens, c.centers, c.group_size)
        return points[places], features

    def _judge(self, sample: Sample, part: Tensor, places: Tensor, features: Tensor, without: int | None = None) -> tuple[float, Tensor]:
        """Stage III: return the score of a sample and its map; the mean over points of a cloud without a grid, else the map's maximum."""
        distance = self._banks.match(features.mean(0), features, without)
        heat = spread_to_part(distance, places, sample, part)
        if not sample.meta.organised:
            return float(heat[part].mean()), heat
        if self.config.reference:
            heat = blur_8bit(heat)
        else:
            height, width = sample.size
            heat = smooth_map(heat, self.config.smooth * (height * width) ** 0.5 / 224, part) * part
        return float(heat.max()), heat

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        found = []
        for sample in samples:
            part = self._find(sample)
            score, heat = self._judge(sample, part, *self._describe(self._take(sample, part)))
            found.append(self._conclude(sample, score, heat))
        return found

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        net = {f"net.{key}": value for key, value in self._open_net().state_dict().items()}
        return self._banks.state() | net, {"threshold": self._threshold, "weights": self._used, "has_table": self._has_table}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        c = self.config
        self._net = DescriptorTransformer(FPFH_STATISTICS, c.depth, c.dim, HEADS) if c.points == "fpfh" else PointTransformer()
        self._net.requires_grad_(False)
        self._net.load_state_dict(strip_prefix(tensors, "net."))
        self._used = list(values["weights"])
        self._banks = RoutedBanks.from_state(tensors)
        self._threshold, self._has_table = values["threshold"], bool(values["has_table"])
