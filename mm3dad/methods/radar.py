"""radar: what a noise predictor sees in a picture, in one pass and without reconstructing it, judged by an isolation forest.

"Single-Step Reconstruction-Free Anomaly Detection and Segmentation via Diffusion Models" (RADAR, arXiv 2508.04818), known from its
abstract and digests: a U-Net with attention trained on patches of normal images, one forward step, the predicted noise as the evidence,
a Sobel filter, two numbers per image and an isolation forest. Sizes, schedules, the step and the form of the map are a reconstruction,
the height map beside the image is ours (trained sheet, part 5). No weights from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mm3dad.errors import ConfigError, DataError
from mm3dad.features.heights import make_relief, shrink_image
from mm3dad.methods._config import MODALITIES, check_modalities, check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress
from mm3dad.nets.denoiser import STEPS, Denoiser, cut_tiles, join_tiles, measure_edges
from mm3dad.nets.training import Task, TrainingSettings, choose_precision, split_normals, train
from mm3dad.scoring.forest import Forest
from mm3dad.scoring.maps import upsample_map
from mm3dad.synthesis import find_part
from mm3dad.types import Prediction, Sample

CHANNELS = {"rgb": 3, "xyz": 1}
BATCHES = 25  # of an epoch
SMOOTH = 5  # pixels a side of the window over which the map is averaged
TILES = 16  # that the network judges at once
RANGES = (
    ("side", 16, 1024),
    ("patch", 8, 256),
    ("step", 0, STEPS - 1),
    ("noises", 1, 64),
    ("trees", 1, 10**4),
    ("epochs", 1, 10**5),
    ("batch", 1, 1024),
    ("rate", 1e-8, 1.0),
    ("false_alarms", 1e-9, 0.999),
    ("seed", 0, 2**62),
)


@dataclass(frozen=True)
class Config:
    """Settings of `radar`."""

    modalities: tuple[str, ...] = option((), "rgb, xyz (heights), or both as channels of one picture; empty takes what the data have")
    side: int = option(96, "side of the square picture")
    patch: int = option(32, "side of the patches that are learned and judged")
    widths: tuple[int, ...] = option((16, 32, 32), "channels of the U-Net's levels, multiples of 8; attention on the last")
    reading: Literal["clean", "residual"] = option("clean", "map: the noise seen in the clean picture, or predicted less added noise")
    step: int = option(100, "step of the forward process, 0 to 999")
    noises: int = option(4, "draws that a residual is averaged over, 1 or more")
    edges: bool = option(False, "Sobel magnitude of the map instead of its square")
    trees: int = option(100, "trees of the isolation forest")
    epochs: int = option(40, "epochs of 25 steps")
    batch: int = option(16, "patches in a step")
    rate: float = option(1e-3, "highest learning rate")
    mixed: bool = option(False, "train in bfloat16 on a CPU with matrix units for it too, as on a GPU: about three times as fast")
    false_alarms: float = option(0.01, "rate of false alarms the threshold aims at")
    seed: int = option(0, "of the weights, the patches, the noise, the forest and the held-out samples")
    device: str = option("cpu", "torch device of the network")

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        check_modalities(self.modalities)
        fold = 2 ** (len(self.widths) - 1)
        if self.patch % fold or self.patch > self.side:
            raise ConfigError(f"patch must be divisible by 2^(levels - 1) = {fold} and at most side = {self.side}, got {self.patch}")


class Radar(Detector):
    """A noise predictor of normal pictures, and an isolation forest over two numbers per modality of what it sees."""

    name = "radar"
    Config = Config
    needs = Needs(inputs=MODALITIES, settings=("one-class", "few-shot", "multi-class"), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._open(tuple(name for name in MODALITIES if name in self.config.modalities or not self.config.modalities))

    def _open(self, names: tuple[str, ...]) -> None:
        """Start afresh with the modalities that are used."""
        c = self.config
        self._names = names
        channels = sum(CHANNELS[name] for name in names)
        self._shift, self._spread = torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1)
        self._level = torch.ones(len(names))
        self._forest = Forest(torch.zeros(0, 2 * len(names)), c.trees, c.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(c.seed)
            self._net = Denoiser(channels, c.widths).eval()

    def _picture(self, sample: Sample) -> Tensor:
        """Return the picture (C, side, side) of a sample: colours, heights in metres, or both."""
        lacking = [name for name in self._names if name not in sample.modalities]
        if lacking:
            raise DataError(
                f"sample {sample.meta.id!r} has no {lacking[0]}, and radar learned {' and '.join(self._names)}; "
                f"complete it, or fit with modalities={sample.modalities[0]}"
            )
        if not sample.meta.organised or sample.size[0] == 1:
            raise DataError(f"sample {sample.meta.id!r} is a cloud without a grid; radar needs an organised one, use duet or glfm")
        channels = []
        if "rgb" in self._names:
            assert sample.rgb is not None
            channels.append(shrink_image(sample.rgb, self.config.side))
        if "xyz" in self._names:
            channels.append(make_relief(sample, find_part(sample), self.config.side).height[None])
        return torch.cat(channels)

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Detector:
        if len(samples) == 0:
            raise DataError("radar needs at least one normal sample, got none; check the training folder")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted = False
        self._open(tuple(name for name in self.config.modalities or samples[0].modalities if name in MODALITIES))
        pictures = []
        for number in range(len(samples)):
            report("reading", number, len(samples))
            pictures.append(self._picture(samples[number]))
        stack = torch.stack(pictures)
        self._shift, self._spread = (one[:, None, None] for one in (stack.mean((0, 2, 3)), stack.std((0, 2, 3)).clamp_min(1e-6)))
        stack = (stack - self._shift) / self._spread
        learn, held = split_normals(len(stack), seed=self.config.seed)
        self._train(stack[learn], stack[held], report)
        heats = []
        for number, picture in enumerate(stack):
            report("judging normal samples", number, len(stack))
            heats.append(self._look(picture))
        self._level = torch.stack(heats).mean((0, 2, 3)).clamp_min(1e-12)
        self._forest = Forest(torch.stack([_summarise(heat) for heat in heats])[learn], self.config.trees, self.config.seed)
        self.is_fitted = True
        self._set_threshold(validation, report, (self._forest.score(_summarise(heats[i])) for i in held))
        return self

    def _train(self, pictures: Tensor, held: Tensor, report: Progress) -> None:
        c = self.config
        total = c.epochs * BATCHES

        def draw(pool: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            picks = torch.randint(len(pool), (count,), generator=generator).tolist()
            corners = torch.randint(c.side - c.patch + 1, (count, 2), generator=generator).tolist()
            cut = torch.stack([pool[i, :, y : y + c.patch, x : x + c.patch] for i, (y, x) in zip(picks, corners, strict=True)])
            return cut, torch.randn(cut.shape, generator=generator), torch.randint(STEPS, (count,), generator=generator)

        # The same patches, noise and steps after every epoch, or the loss would say more of the draw than of the weights.
        check = draw(held, 4 * c.batch, torch.Generator().manual_seed(c.seed)) if len(held) else ()
        task = Task(
            "radar",
            {"pictures": len(pictures), "names": list(self._names)},
            {"net": self._net},
            lambda: torch.optim.AdamW(self._net.parameters(), lr=c.rate),
            c.epochs,
            lambda epoch, generator: [draw(pictures, c.batch, generator) for _ in range(BATCHES)],
            lambda batch: self._net.loss(*batch),
            (lambda: float(self._net.loss(*(part.to(c.device) for part in check)))) if len(held) else None,
            lambda step: min(1.0, (step + 1) / (0.05 * total), 0.02 + 4 * (1 - step / total) / 3),
        )
        settings = TrainingSettings(seed=c.seed, clip=1.0, mixed=choose_precision(c.mixed, c.device), device=c.device)
        train(task, settings, self.training, report, "training")
        self._net.cpu()

    @torch.no_grad()
    def _look(self, picture: Tensor) -> Tensor:
        """Return how much each modality of a picture (C, side, side) is unlike the normal ones, (modalities, side, side)."""
        c = self.config
        tiles, corners = cut_tiles(picture, c.patch)
        # The same noise for every tile of every sample, so that scores repeat and do not hang on what is scored beside.
        noises = torch.randn((c.noises, *tiles.shape[1:]), generator=torch.Generator().manual_seed(c.seed))
        seen = []
        for part in tiles.split(TILES):
            noise = self._net.predict_clean(part, c.step) if c.reading == "clean" else self._net.predict_residual(part, c.step, noises)
            seen.append(measure_edges(noise) if c.edges else noise.square())
        heat = join_tiles(torch.cat(seen), corners, (c.side, c.side))
        heat = functional.avg_pool2d(heat[None], SMOOTH, stride=1, padding=SMOOTH // 2, count_include_pad=False)[0]
        return torch.stack([part.mean(0) for part in heat.split([CHANNELS[name] for name in self._names])])

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        found = []
        for sample in samples:
            heat = self._look((self._picture(sample) - self._shift) / self._spread)
            relative = heat / self._level[:, None, None]
            maps = {f"{name}_map": upsample_map(one, sample.size) for name, one in zip(self._names, relative, strict=True)}
            pixels = torch.stack(list(maps.values())).sum(0)
            found.append(self._conclude(sample, self._forest.score(_summarise(heat)), pixels, maps))
        return found

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        scale = {"shift": self._shift, "spread": self._spread, "level": self._level, "normal": self._forest.normal}
        return {**scale, **self._net.state_dict()}, {"names": list(self._names), "threshold": self._threshold}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._open(tuple(values["names"]))
        left = dict(tensors)
        self._shift, self._spread, self._level, normal = (left.pop(name) for name in ("shift", "spread", "level", "normal"))
        self._forest = Forest(normal, self.config.trees, self.config.seed)
        self._net.load_state_dict(left)
        self._threshold = values["threshold"]


def _summarise(heat: Tensor) -> Tensor:
    """Return two numbers per modality of (modalities, side, side): the norm of the whole map, and the largest of its windows."""
    flat = heat.flatten(1)
    return torch.stack([flat.mean(1), flat.amax(1)], dim=1).sqrt().flatten()
