"""das3d: defects drawn on image and depth together teach two reconstructors and a discriminator that sees both.

"DAS3D: Dual-modality Anomaly Synthesis for 3D Anomaly Detection" (ECCV Workshops 2024, arXiv 2410.09821), known from its abstract and
reviews: the dual-modal generator with a ternary mask and augmentation dropout, two reconstructors, one dual-modal discriminator. All
sizes, losses and schedules are a reconstruction after its parents DRAEM and 3DSR (trained sheet, part 4). No weights from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.features.heights import View, balance_image, make_view, measure_window
from mm3dad.methods._config import MODALITIES, check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress
from mm3dad.nets.losses import dice_loss, focal_loss, structural_similarity
from mm3dad.nets.training import Task, TrainingSettings, choose_precision, split_normals, train
from mm3dad.nets.unet import FOLD, DualDiscriminator, Reconstructor
from mm3dad.ops.slopes import find_slopes
from mm3dad.scoring.maps import upsample_map
from mm3dad.synthesis import draw_pair, find_part
from mm3dad.types import Prediction, Sample

LOW, ROOM = 0.1, 0.8  # 3DSR: a part's relief fills 0.1 to 0.9, which leaves room for defects
POOL = 21 / 256  # DRAEM: side of the window whose mean is the score, as a share of the picture
FRAGMENTS = 0.05  # share of normal parts of which only a piece may have been found; a window is at least as large as that of the others
STEPS = 25  # of an epoch
CHECKS = 4  # draws of each held-out sample after each epoch
MEMORY = 0.98  # of the average of the weights, which has the norms' statistics in it too; those of a few small batches are noise
GAIN = 10.0  # of what is small in a depth beside its steps: differences, and twice that for slopes
RANGES = (
    ("side", 32, 1024),
    ("width", 1, 512),
    ("levels", 1, 6),
    ("epochs", 1, 10**5),
    ("batch", 1, 1024),
    ("rate", 1e-8, 1.0),
    ("false_alarms", 1e-9, 0.999),
    ("seed", 0, 2**62),
)


@dataclass(frozen=True)
class Config:
    """Settings of `das3d`."""

    side: int = option(128, "side of the square pictures; divisible by 2^(levels + 1)")
    width: int = option(16, "channels of the first level of all three networks")
    levels: int = option(3, "halvings inside the networks")
    epochs: int = option(24, "epochs of 25 steps")
    batch: int = option(4, "pictures in a step")
    rate: float = option(8e-3, "highest learning rate")
    mixed: bool = option(False, "train in bfloat16 on a CPU with matrix units for it too, as on a GPU: about three times as fast")
    false_alarms: float = option(0.01, "rate of false alarms the threshold aims at")
    seed: int = option(0, "of the weights, the defects and the held-out samples")
    device: str = option("cpu", "torch device of the networks")

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        if self.side % (FOLD * 2**self.levels):
            raise ConfigError(f"side must be divisible by 2^(levels + 1) = {FOLD * 2**self.levels}, got {self.side}")


class Das3d(Detector):
    """Two reconstructors and a discriminator, trained on defects of image and depth that fit each other."""

    name = "das3d"
    Config = Config
    needs = Needs(inputs=MODALITIES, settings=("one-class", "few-shot", "multi-class"), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._scale = 1.0  # picture units per metre of height
        self._least = 0.0  # side of a window, as a share of a picture's
        self._build()

    def _build(self) -> None:
        c = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(c.seed)
            self._nets = nn.ModuleDict(
                {
                    "rgb": Reconstructor(3, c.width, max(1, c.levels - 1)),
                    "xyz": Reconstructor(1, c.width, max(1, c.levels - 1)),
                    "discriminator": DualDiscriminator((9, 5), c.width, c.levels),
                }
            ).eval()
        # Channels last: a third less time for convolutions on a CPU.
        self._nets.to(memory_format=torch.channels_last)

    def _view(self, sample: Sample) -> View:
        lacking = [name for name in MODALITIES if name not in sample.modalities]
        if lacking:
            raise DataError(f"sample {sample.meta.id!r} has no {lacking[0]}, and das3d compares image and depth; use duet, or complete it")
        view = make_view(sample, find_part(sample), self.config.side, self._least)
        return replace(view, rgb=balance_image(view.rgb, view.part))

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Detector:
        if len(samples) == 0:
            raise DataError("das3d needs at least one normal sample, got none; check the training folder")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted = False
        self._build()
        self._least = 0.0
        views, shares = [], []
        for number in range(len(samples)):
            report("reading", number, len(samples))
            views.append(self._view(sample := samples[number]))
            shares.append(measure_window(views[-1].window) / max(sample.size))
        self._least = float(torch.tensor(shares).quantile(FRAGMENTS))
        self._scale = ROOM / max(1e-4, float(torch.tensor([view.relief for view in views]).median()))
        learn, held = split_normals(len(views), seed=self.config.seed)
        self._train([views[i] for i in learn], [views[i] for i in held], report)
        self.is_fitted = True
        self._set_threshold(validation, report, (self._judge(views[i])[0] for i in held))
        return self

    def _train(self, views: list[View], held: list[View], report: Progress) -> None:
        c = self.config
        steps = c.epochs * STEPS
        fixed = torch.Generator().manual_seed(c.seed)
        check = _stack([self._draw(view, held, fixed) for view in held for _ in range(CHECKS)]) if held else ()

        def batches(epoch: int, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
            picks = torch.randint(len(views), (STEPS, c.batch), generator=generator).tolist()
            return [_stack([self._draw(views[i], views, generator) for i in row]) for row in picks]

        task = Task(
            "das3d",
            {"views": len(views)},
            {"nets": self._nets},
            lambda: torch.optim.Adam(self._nets.parameters(), lr=c.rate),
            c.epochs,
            batches,
            self._loss,
            (lambda: float(sum(self._loss(tuple(part.to(c.device) for part in check)).values()))) if held else None,
            # Warm for the first twentieth, then down; DRAEM drops the rate at 80 % and 90 % of a far longer training.
            lambda step: min(1.0, (step + 1) / (0.05 * steps), 0.02 + 4 * (1 - step / steps) / 3),
        )
        settings = TrainingSettings(seed=c.seed, clip=1.0, ema=MEMORY, mixed=choose_precision(c.mixed, c.device), device=c.device)
        train(task, settings, self.training, report, "training")
        self._nets.cpu()

    def _draw(self, view: View, pool: Sequence[View], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return clean and altered image, clean and altered depth and the mask of one draw: turned by right angles, often defective."""
        turns = int(torch.randint(4, (), generator=generator))
        rgb, height, part = (torch.rot90(one, turns, dims=(-2, -1)) for one in (view.rgb, view.height, view.part))
        depth = self._to_depth(height)
        pair = draw_pair(rgb, depth, part, [one.rgb for one in pool], generator)
        return rgb, pair.rgb, depth, pair.depth, pair.mask

    def _to_depth(self, height: Tensor) -> Tensor:
        """Turn heights in metres into a picture of depth in [0, 1], 0.9 on the table and about 0.1 on top of a part."""
        return (1 - LOW - self._scale * height).clamp(0, 1)

    def _run(self, rgb: Tensor, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct both (B, 3, H, W) and (B, 1, H, W), and compare: the probability of a defect (B, H, W)."""
        rgb, depth = (one.contiguous(memory_format=torch.channels_last) for one in (rgb, depth))
        image, surface = self._nets["rgb"](rgb), self._nets["xyz"](depth)
        # Detached: a reconstructor that learns to help the discriminator reconstructs late. Differences and slopes beside the pair: what
        # a short training would else spend most of its steps on.
        colour, shape = image.detach(), surface.detach()
        colours = torch.cat([rgb, colour, (rgb - colour).abs()], dim=1)
        slopes = [(2 * GAIN * slope).clamp(-1, 1) for slope in find_slopes(depth)]
        shapes = torch.cat([depth, shape, (GAIN * (depth - shape).abs()).clamp_max(1), *slopes], dim=1)
        return image, surface, self._nets["discriminator"]([colours, shapes])

    def _loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        rgb, altered, depth, moved, mask = batch
        image, surface, probability = (found.float() for found in self._run(altered, moved))
        terms = {"focal": focal_loss(probability, mask), "dice": dice_loss(probability, mask)}
        for name, found, wanted in (("rgb", image, rgb), ("depth", surface, depth)):
            terms[name] = functional.mse_loss(found, wanted) + 1 - structural_similarity(found, wanted).mean()
        return terms

    @torch.no_grad()
    def _judge(self, view: View) -> tuple[float, Tensor]:
        """Return the score of a view, and its map (side, side): the mean probability around each pixel, over four turns."""
        pair = view.rgb, self._to_depth(view.height)[None]
        rgb, depth = (torch.stack([torch.rot90(one, turn, (-2, -1)) for turn in range(4)]) for one in pair)
        turned = self._run(rgb, depth)[2]
        probability = torch.stack([torch.rot90(one, -turn, (-2, -1)) for turn, one in enumerate(turned)]).mean(0, keepdim=True)
        window = 2 * round(POOL * self.config.side / 2) + 1
        heat = functional.avg_pool2d(probability, window, stride=1, padding=window // 2, count_include_pad=False)[0]
        return float(heat.max()), heat

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        found = []
        for sample in samples:
            view = self._view(sample)
            score, heat = self._judge(view)
            pixels = torch.zeros(sample.size)
            inside = pixels[view.window]
            inside.copy_(upsample_map(heat, (inside.shape[0], inside.shape[1])))
            found.append(self._conclude(sample, score, pixels))
        return found

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self._nets.state_dict()), {"scale": self._scale, "least": self._least, "threshold": self._threshold}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        try:
            self._nets.load_state_dict(tensors)
        except RuntimeError as error:
            raise ModelError("the networks of this das3d model have other inputs than those of this version; fit it again") from error
        self._scale, self._least, self._threshold = float(values["scale"]), float(values["least"]), values["threshold"]


def _stack(draws: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Join draws to a batch: images (B, 3, H, W), depths (B, 1, H, W), masks (B, H, W)."""
    rgb, altered, depth, moved, mask = (torch.stack(part) for part in zip(*draws, strict=True))
    return rgb, altered, depth[:, None], moved[:, None], mask
