"""What the methods with flat banks share (patchcore, btf, m3dm): settings, streaming fit, held-out thresholds, prediction."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mm3dad.errors import DataError
from mm3dad.features.branches import Patches, patch_grid
from mm3dad.features.cache import Describes, keep_features
from mm3dad.features.patchmaps import ImagePatches, Join, PointPatches
from mm3dad.features.pixelmap import PointCells
from mm3dad.memory.coreset import project_rows, select_coreset
from mm3dad.memory.flat import FlatBank
from mm3dad.methods._config import MODALITIES, check_modalities, check_ranges, option
from mm3dad.methods._detector import Detector, Progress
from mm3dad.scoring.calibrate import held_out_numbers
from mm3dad.scoring.maps import blur_8bit, pixel_map, upsample_map
from mm3dad.types import Prediction, Sample

Grid = tuple[int, int]
RANGES = (
    ("image_size", 64, 4096),
    ("max_points", 128, 10**7),
    ("centers", 1, 10**6),
    ("group_size", 4, 10**5),
    ("coreset", 0.0, 1.0),
    ("neighbors", 1, 1000),
    ("smooth", 0.0, 100.0),
    ("false_alarms", 1e-9, 0.999),
    ("seed", 0, 2**62),
)


@dataclass(frozen=True)
class RetrievalConfig:
    """Settings of all methods with flat banks."""

    modalities: tuple[str, ...] = option((), "rgb and / or xyz; empty uses what the data have")
    image_size: int = option(224, "side of the square with as many pixels as the network's input")
    backbone: str = option("efficientnet_lite0", "row of `mm3dad list weights`, or any timm architecture")
    layers: tuple[int, ...] = option((), "layers of the backbone, negative from the end; empty uses the table's")
    weights: str = option("default", "default, the path of a state dict, or random")
    points: Literal["fpfh", "point_mae"] = option("fpfh", "point features: FPFH or Point-MAE tokens")
    point_weights: str = option("default", "path of a Point-MAE checkpoint, or default for the cache")
    max_points: int = option(10000, "most points of a cloud; reference=true takes all of the square of image_size")
    centers: int = option(1024, "point groups per cloud (Point-MAE)")
    group_size: int = option(128, "points per group (Point-MAE)")
    coreset: float = option(0.1, "share of the normal patches kept in a bank")
    neighbors: int = option(3, "bank rows that re-weigh the image score, the matched row included; 1 re-weighs nothing")
    smooth: float = option(4.0, "Gaussian smoothing of the map, in pixels of a 224 x 224 image")
    false_alarms: float = option(0.01, "rate of false alarms the threshold aims at")
    reference: bool = option(False, "as the published code does it, with its quirks; see the method's page")
    seed: int = option(0, "first pick of the coreset, random projection, random weights")
    feature_cache: str = option("", "folder in which features are kept between runs; empty keeps none")
    device: str = option("cpu", "torch device of the backbone")

    def __post_init__(self) -> None:
        check_modalities(self.modalities)
        check_ranges(self, RANGES)


class RetrievalDetector(Detector):
    """A detector that compares patches with flat banks of normal ones. Subclasses fill `_join`, `_arrange` and `_remember`."""

    config: Any
    raw_histograms: ClassVar[bool] = False  # FPFH as it is, instead of its roots

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made: dict[str, Describes[Patches]] = {}
        self._modalities: tuple[str, ...] = ()
        self._grids: list[dict[str, Grid]] = []  # of the training samples, while fitting
        self._banks: dict[str, FlatBank] = {}

    @property
    def _fineness(self) -> int:
        """Cells of the point grid a side for one of the image."""
        return 1

    @property
    @abstractmethod
    def _join(self) -> Join:
        """How layers of the backbone become one map."""

    @abstractmethod
    def _remember(self, full: dict[str, FlatBank], report: Progress) -> dict[str, FlatBank]:
        """Seal the banks of all patches, in place, and return the ones to keep."""

    def _arrange(self, found: dict[str, Patches]) -> dict[str, Patches]:
        """Make the patches of each bank from the patches of each modality."""
        return found

    def _extend(self, rows: dict[str, Tensor], grids: dict[str, Grid]) -> tuple[dict[str, Tensor], dict[str, Grid]]:
        """Add the rows of banks that are made of others' normalised rows."""
        return rows, grids

    def _choose_modalities(self, sample: Sample) -> tuple[str, ...]:
        wanted = self.config.modalities or sample.modalities
        return tuple(name for name in MODALITIES if name in wanted)

    def _extractor(self, name: str) -> Describes[Patches]:
        """Return the extractor of a modality, made when it is first needed."""
        c = self.config
        if name not in self._made:
            made: Describes[Patches]
            kept: tuple[object, ...]
            if name == "rgb":
                kept = self._join_settings(), c.image_size, c.backbone, c.layers, c.weights
                made = ImagePatches(self._join, c.image_size, c.backbone, c.layers, c.weights, c.device, c.seed)
            else:
                side = c.image_size if c.reference else min(c.image_size, math.isqrt(c.max_points))
                kept = c.points, side, c.centers, c.group_size, c.reference, self.raw_histograms, self._fineness, c.image_size
                cells = PointCells(c.points, c.point_weights, side, c.centers, c.group_size, c.reference, self.raw_histograms, False)
                made = PointPatches(cells, c.image_size, self._fineness)
            self._made[name] = keep_features(made, Patches, c.feature_cache, self.name, name, kept)
        return self._made[name]

    def _join_settings(self) -> object:
        """What `_join` depends on, for the cache."""
        return None

    @property
    def weights(self) -> list[dict[str, Any]]:
        names = self._modalities or self.config.modalities or MODALITIES
        return [row for name in names for row in self._extractor(name).weights]

    def _describe(self, sample: Sample) -> dict[str, Patches]:
        for name in self._modalities:
            if name not in sample.modalities:
                raise DataError(
                    f"sample {sample.meta.id!r} has no {name}, which this {self.name} model uses; complete it, or fit with "
                    f"modalities={','.join(sample.modalities)}"
                )
        return self._arrange({name: self._extractor(name).describe([sample])[0] for name in self._modalities})

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Detector:
        if len(samples) == 0:
            raise DataError(f"{self.name} needs at least one normal sample, got none; check the training folder")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted = False
        self._modalities = self._choose_modalities(samples[0])
        full: dict[str, FlatBank] = {}
        canvases: list[Grid] = []
        self._grids = []
        for number in range(len(samples)):
            report("features", number, len(samples))
            sample = samples[number]
            found = self._describe(sample)
            for name, patches in found.items():
                full.setdefault(name, self._open_bank()).add(sample.meta.id, patches.features)
            self._grids.append({name: patches.grid for name, patches in found.items()})
            canvases.append(self._canvas(sample))
        self._banks = self._remember(full, report)
        judged, held = [], held_out_numbers(len(samples))
        for done, i in enumerate(held):
            report("held-out scores", done, len(held))
            rows, grids = self._extend({name: bank.part(i) for name, bank in full.items()}, self._grids[i])
            judged.append(self._judge(rows, grids, canvases[i], without=i))
        self._calibrate(judged)
        self.is_fitted = True
        self._set_threshold(validation, report, (self._combine(*parts)[0] for parts in judged))
        return self

    def _open_bank(self) -> FlatBank:
        # Published numbers come from single precision; its last digits tell no defect from a good part.
        return FlatBank(torch.float32 if self.config.reference else torch.float16)

    def _canvas(self, sample: Sample) -> Grid:
        """Size of the map on which modalities meet, about image_size^2 pixels in the sample's shape."""
        height, width = patch_grid(sample.size, self.config.image_size)
        return height * 8, width * 8

    def _choose_rows(self, bank: FlatBank, size: int, count: int | None = None) -> Tensor:
        """Choose the coreset: exact greedy k-centre, on seeded projections where rows are wider than `size`."""
        count = count or max(1, int(self.config.coreset * len(bank.rows)))
        start = 0
        if not self.config.reference:
            start = int(torch.randint(len(bank.rows), (), generator=torch.Generator().manual_seed(self.config.seed)))
        return select_coreset(project_rows(bank.rows.float(), size, self.config.seed), count, start)

    def _judge(
        self, features: dict[str, Tensor], grids: dict[str, Grid], canvas: Grid, without: int | None = None
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Score normalised patches with each bank: image scores and maps on the canvas.

        Args:
            without: number of a training sample whose own rows are left out.
        """
        scores, maps = {}, {}
        for name, rows in features.items():
            bank = self._banks[name] if without is None else self._banks[name].without(without)
            distance, index = bank.match(rows)
            scores[name] = self._image_score(name, rows, distance, index, bank)
            maps[name] = self._heat(distance.view(grids[name]), canvas)
        return scores, maps

    def _image_score(self, name: str, rows: Tensor, distance: Tensor, index: Tensor, bank: FlatBank) -> float:
        """Return one bank's image score from its patch distances."""
        return float(distance.max())

    def _heat(self, distance: Tensor, canvas: Grid) -> Tensor:
        """Carry patch distances (h, w) to the canvas."""
        if self.config.reference:
            return blur_8bit(upsample_map(distance, canvas))
        return pixel_map(distance, canvas, self.config.smooth)

    def _calibrate(self, judged: list[tuple[dict[str, float], dict[str, Tensor]]]) -> None:
        """Learn from held-out normal samples how banks combine; with one bank there is nothing to learn."""

    def _combine(self, scores: dict[str, float], maps: dict[str, Tensor]) -> tuple[float, Tensor]:
        """Make one score and one map of the banks'."""
        (score,), (heat,) = scores.values(), maps.values()
        return score, heat

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        return [self._predict_one(sample) for sample in samples]

    def _predict_one(self, sample: Sample) -> Prediction:
        found = self._describe(sample)
        rows = {name: self._banks[name].normalise(patches.features) for name, patches in found.items()}
        scores, maps = self._judge(*self._extend(rows, {name: patches.grid for name, patches in found.items()}), self._canvas(sample))
        score, heat = self._combine(scores, maps)
        parts: dict[str, Tensor] = {}
        for name in scores if len(scores) > 1 else ():
            parts[f"{name}_score"], parts[f"{name}_map"] = torch.tensor(scores[name]), upsample_map(maps[name], sample.size)
        pixels = upsample_map(heat, sample.size)
        return self._conclude(sample, score, pixels, parts)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {key: value for name, bank in self._banks.items() for key, value in bank.state(f"{name}.").items()}
        return tensors, {"modalities": list(self._modalities), "banks": list(self._banks), "threshold": self._threshold}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._modalities = tuple(values["modalities"])
        self._banks = {name: FlatBank.from_state(tensors, f"{name}.") for name in values["banks"]}
        self._threshold = values["threshold"]
