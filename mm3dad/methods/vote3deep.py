"""vote3deep: voting convolutions on the occupied cells of a cloud, as features for a bank and as a detector that returns boxes. 3D only.

"Vote3Deep: Fast object detection in 3D point clouds using efficient convolutional neural networks" (ICRA 2017, arXiv 1609.06666; trained
sheet, part 7) detects cars. Its layer, its biases that are never above 0, the L1 penalty, the hinge loss, boxes of one size and their
suppression come over; here objects are defects stretched out of normal parts, and the bank of hidden activations is ours. No weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mm3dad.errors import ConfigError, DataError
from mm3dad.features.adapted import spread_to_part
from mm3dad.features.voxels import CHANNELS, PartCloud, Voxels, measure_voxels, take_cloud
from mm3dad.memory.coreset import select_coreset
from mm3dad.memory.flat import FlatBank, balance_blocks
from mm3dad.methods._config import check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress, strip_prefix
from mm3dad.methods._stretched import draw_defects, measure_box
from mm3dad.nets.training import Task, TrainingSettings, split_normals, train
from mm3dad.nets.voting import Read, VotingNet, join_clouds, mined_hinge_loss
from mm3dad.ops.finite import is_finite
from mm3dad.scoring.boxes import box_corners, suppress_boxes
from mm3dad.scoring.calibrate import Calibration, threshold_for_rate
from mm3dad.scoring.maps import smooth_map
from mm3dad.synthesis import find_part
from mm3dad.types import Prediction, Sample

LEAST = 16  # points of a part
TAIL = 0.999  # quantile of the cells of normal parts that becomes 1 in either score
SOURCES = ("bank", "head")
RANGES = (
    ("cells", 4, 512),
    ("max_points", LEAST, 10**7),
    ("width", 1, 256),
    ("epochs", 0, 10**5),
    ("steps", 1, 10**6),
    ("batch", 1, 64),
    ("rate", 1e-8, 1.0),
    ("sparsity", 0.0, 10.0),
    ("coreset", 0.0, 1.0),
    ("smooth", 0.0, 100.0),
    ("boxes", 0, 1000),
    ("false_alarms", 1e-9, 0.999),
    ("seed", 0, 2**62),
)


@dataclass(frozen=True)
class Config:
    """Settings of `vote3deep`."""

    scores: tuple[str, ...] = option(("head",), "what counts: the detector's score (head), the distance to the bank of activations (bank)")
    cells: int = option(40, "cells that the median part is wide")
    max_points: int = option(8000, "most points of a part")
    width: int = option(8, "channels of the hidden layers; published: 8")
    epochs: int = option(16, "epochs of training; 0 leaves the network untrained; published: 100")
    steps: int = option(16, "batches in an epoch")
    batch: int = option(4, "clouds with defects in a batch")
    rate: float = option(1e-2, "highest learning rate")
    sparsity: float = option(1e-3, "weight of the L1 penalty on activations; published: 0, 1e-4 and 1e-3")
    coreset: float = option(0.1, "share of the rows kept in the bank")
    smooth: float = option(3.0, "Gaussian smoothing of the map, in pixels of a 224 x 224 image")
    boxes: int = option(8, "most boxes of a sample")
    false_alarms: float = option(0.01, "rate of false alarms the thresholds aim at")
    seed: int = option(0, "of the weights, the defects and the held-out samples")
    device: str = option("cpu", "torch device of the training")

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        if not self.scores or set(self.scores) - set(SOURCES):
            raise ConfigError(f"scores must be of {', '.join(SOURCES)}, got {self.scores!r}; write scores=bank,head")


class Vote3Deep(Detector):
    """Voting layers trained on stretched parts; their activations against a bank, their head against a margin."""

    name = "vote3deep"
    Config = Config
    needs = Needs(inputs=("xyz",), settings=("one-class", "few-shot", "multi-class"), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._has_table = True
        self._size = 0.0  # metres, side of a cell
        self._box = torch.zeros(3)  # metres, sides of a box
        self._box_threshold = 0.0  # of the head's score, whose hinge loss parts the sides at 0
        self._scales: dict[str, Calibration] = {}
        self._bank = FlatBank()
        self._build()

    def _build(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._net = VotingNet(CHANNELS, self.config.width)

    def _look(self, sample: Sample) -> PartCloud:
        if "xyz" not in sample.modalities:
            raise DataError(f"sample {sample.meta.id!r} has no xyz, and vote3deep sees points alone; use patchcore for images")
        assert sample.valid is not None
        part = find_part(sample) if self._has_table else sample.valid
        return take_cloud(sample, part, self.config.max_points, LEAST)

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Detector:
        if len(samples) == 0:
            raise DataError("vote3deep needs at least one normal sample, got none; check the training folder")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted, self._threshold, self._has_table = False, None, True
        self._build()
        clouds, ids, apart = [], [], 0
        for number in range(len(samples)):
            report("reading", number, len(samples))
            sample = samples[number]
            cloud = self._look(sample)
            clouds.append(cloud.points)
            ids.append(sample.meta.id)
            apart += not torch.equal(cloud.part, sample.valid)  # type: ignore[arg-type]
        # Parts that fill the picture: what stands out of it on a test sample is a defect, and no part on a table.
        self._has_table = 2 * apart > len(samples)
        spans = torch.stack([(cloud.amax(0) - cloud.amin(0))[:2].max() for cloud in clouds])
        self._size = max(float(spans.median()), 1e-6) / self.config.cells
        found = [measure_voxels(cloud, self._size) for cloud in clouds]
        self._net.standardise(torch.cat([one.features for one in found]))
        learn, held = split_normals(len(clouds), seed=self.config.seed)
        self._train([clouds[i] for i in learn], [clouds[i] for i in held], report)
        reads = [self._read(one) for one in found]
        report("coreset", 0, 1)
        whole = FlatBank()
        for identity, read in zip(ids, reads, strict=True):
            whole.add(identity, read.features)
        whole.seal()
        whole.rescale(*balance_blocks(whole.rows, [1] * whole.rows.shape[1]))
        self._calibrate([(reads[i], whole.without(i)) for i in held or range(len(reads))])
        self._bank = whole.thin(select_coreset(whole.rows.float(), max(1, int(self.config.coreset * len(whole.rows)))))
        self.is_fitted = True

        def hold_out() -> Iterator[float]:
            for done, i in enumerate(held):
                report("held-out scores", done, len(held))
                sample = samples[i]
                yield self._judge(sample, self._look(sample), found[i], reads[i], whole.without(i))[0]

        self._set_threshold(validation, report, hold_out())
        return self

    def _train(self, clouds: list[Tensor], held: list[Tensor], report: Progress) -> None:
        c = self.config
        fixed = torch.Generator().manual_seed(c.seed)
        self._box = measure_box(clouds, fixed).clamp_min(self._size)
        if not c.epochs:
            return
        check = self._draw([cloud for cloud in held for _ in range(2)], fixed) if held else None
        total = c.epochs * c.steps

        def batches(epoch: int, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
            picks = torch.randint(len(clouds), (c.steps, c.batch), generator=generator).tolist()
            return [self._draw([clouds[i] for i in row], generator) for row in picks]

        def loss(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
            cells, values, target = batch
            # The loop names a training that diverged; a layer would blame the cells.
            if not all(is_finite(one) for one in self._net.parameters()):
                return {"hinge": values.new_tensor(math.nan)}
            read = self._net(cells, values)
            return {"hinge": mined_hinge_loss(read.scores, target), "sparsity": c.sparsity * read.activity}

        task = Task(
            "vote3deep",
            {"clouds": len(clouds), "size": self._size},
            {"net": self._net},
            lambda: torch.optim.Adam(self._net.parameters(), lr=c.rate),
            c.epochs,
            batches,
            loss,
            None if check is None else lambda: float(loss(tuple(one.to(c.device) for one in check))["hinge"]),
            lambda step: min(1.0, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / total)),
        )
        train(task, TrainingSettings(seed=c.seed, clip=1.0, device=c.device), self.training, report, "training")
        self._net.cpu()

    def _draw(self, clouds: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Give each cloud defects, and join: cells, their values and what they are."""
        draws = [draw_defects(cloud, self._size, generator) for cloud in clouds]
        cells = join_clouds([voxels.cells for voxels, _ in draws], self._net.reach)
        return cells, torch.cat([voxels.features for voxels, _ in draws]), torch.cat([target for _, target in draws])

    @torch.no_grad()
    def _read(self, voxels: Voxels) -> Read:
        return self._net(voxels.cells, voxels.features)

    def _calibrate(self, held: Sequence[tuple[Read, FlatBank]]) -> None:
        """Put both scores on the scale of normal cells, and set the score from which a box is drawn."""
        for name in SOURCES:
            self._scales[name] = Calibration.fit(torch.cat([self._score(name, read, bank) for read, bank in held]), TAIL)
        highest = [softplus(read.scores).max() for read, _ in held]
        self._box_threshold = threshold_for_rate(torch.stack(highest), self.config.false_alarms)

    def _score(self, name: str, read: Read, bank: FlatBank) -> Tensor:
        """Return one of both scores of each cell (M,), >= 0."""
        return softplus(read.scores) if name == "head" else bank.match(bank.normalise(read.features))[0]

    def _judge(self, sample: Sample, seen: PartCloud, voxels: Voxels, read: Read, bank: FlatBank) -> tuple[float, Tensor]:
        """Return the score of a sample, its map's maximum, and the map."""
        cells = torch.stack([self._scales[name].apply(self._score(name, read, bank)) for name in self.config.scores]).sum(0)
        heat = spread_to_part(cells, voxels.middle @ seen.axes, sample, seen.part)
        if sample.meta.organised:
            height, width = sample.size
            heat = smooth_map(heat, self.config.smooth * (height * width) ** 0.5 / 224, seen.part) * seen.part
        return float(heat.max()), heat

    def _find_boxes(self, voxels: Voxels, read: Read, axes: Tensor) -> dict[str, Tensor]:
        """Return corners (B, 8, 3), metres in the camera's frame, and scores (B,), best first."""
        scores = softplus(read.scores)
        sure = (scores > self._box_threshold).nonzero()[:, 0]
        kept = sure[suppress_boxes(voxels.middle[sure], self._box, scores[sure], most=self.config.boxes)]
        return {"boxes": box_corners(voxels.middle[kept], self._box, axes), "box_scores": scores[kept]}

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        found = []
        for sample in samples:
            seen = self._look(sample)
            voxels = measure_voxels(seen.points, self._size)
            read = self._read(voxels)
            score, heat = self._judge(sample, seen, voxels, read, self._bank)
            found.append(self._conclude(sample, score, heat, self._find_boxes(voxels, read, seen.axes)))
        return found

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        net = {f"net.{key}": value for key, value in self._net.state_dict().items()}
        values = {
            "size": self._size,
            "box_threshold": self._box_threshold,
            "scales": {name: scale.to_dict() for name, scale in self._scales.items()},
            "threshold": self._threshold,
            "has_table": self._has_table,
        }
        return self._bank.state() | net | {"box": self._box}, values

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._net.load_state_dict(strip_prefix(tensors, "net."))
        self._bank, self._box = FlatBank.from_state(tensors), tensors["box"]
        self._size, self._box_threshold = float(values["size"]), float(values["box_threshold"])
        self._scales = {name: Calibration.from_dict(values["scales"][name]) for name in SOURCES}
        self._threshold, self._has_table = values["threshold"], bool(values["has_table"])
