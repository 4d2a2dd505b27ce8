"""How mrad learns: projections in front of its memory, and prompts of CLIP's text tower, on the auxiliary set that is the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mm3dad.features.clip import ClipExtractor
from mm3dad.memory.labelled import LabelledMemory, region_means
from mm3dad.methods._detector import Progress
from mm3dad.nets.labelled_head import MemoryHead, scaled_cross_entropy, segmentation_losses
from mm3dad.nets.prompts import Prompts
from mm3dad.nets.training import Task, TrainingRun, TrainingSettings, shuffle_batches, train

LAST_RATE = 1e-6  # of the cosine, at its end
TEXT_TEMPERATURE = 0.07
ENDINGS = "object.", "damaged object."  # what follows the learned context: normal, anomalous


@dataclass(frozen=True)
class Labelled:
    """One auxiliary sample: descriptor (C,), smoothed patches (P, C') and their grid, mask (S, S) of 0 and 1, label."""

    descriptor: Tensor
    patches: Tensor
    grid: tuple[int, int]
    mask: Tensor
    label: int


Read = Callable[[int], Labelled]


class PromptJudge:
    """Patches judged by the texts of two prompts that follow what the memory says of the image (MRAD-CLIP).

    Args:
        clip: the encoder with both towers.
        seed: of the prompts' initial tokens.
    """

    def __init__(self, clip: ClipExtractor, seed: int) -> None:
        self.clip = clip
        normal, damaged = (clip.embed_text(phrase) for phrase in ENDINGS)
        self._start, self._endings = normal[:1], (normal[1:], damaged[1:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.prompts = Prompts(normal.shape[1], clip.text.text_projection.shape[1], len(clip.text.transformer.resblocks)).eval()

    def judge(self, patches: Sequence[Tensor], anomalous: Sequence[Tensor]) -> list[Tensor]:
        """Return how normal and how anomalous patches are: per image (P, 2), rows sum to 1.

        Args:
            patches: per image (P, C'), smoothed.
            anomalous: per image (P,), the memory's probabilities; above 0.5 a patch belongs to the anomalous region.
        """
        shared = [F.normalize(self.clip.project(one), dim=1) for one in patches]
        regions = [
            region_means(one, torch.stack([probability <= 0.5, probability > 0.5]))
            for one, probability in zip(shared, anomalous, strict=True)
        ]
        device = self.clip.device
        texts = self.prompts.to(device)(self.clip.text, self._start, self._endings, torch.stack(regions).to(device))
        return [(one @ text.to(one).T / TEXT_TEMPERATURE).softmax(1) for one, text in zip(shared, texts, strict=True)]


def make_head(memory: LabelledMemory, seed: int, isometric: bool) -> MemoryHead:
    """Return untrained projections for the rows of a memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MemoryHead(len(memory.images[0]), len(memory.patches[0]), isometric).eval()


def train_head(head: MemoryHead, memory: LabelledMemory, read: Read, config: Any, fade: bool, run: TrainingRun, report: Progress) -> None:
    """Train the projections in place: MRAD-FT, or the first stage of MRAD-CLIP.

    Args:
        memory: of the samples that are learned from.
        read: gives an auxiliary sample by its number.
        config: mrad's settings.
        fade: let the learning rate fall along a cosine.

    Raises:
        TrainingError: the training diverged.
    """

    def loss(batch: Tensor) -> dict[str, Tensor]:
        chosen = [read(i) for i in batch.tolist()]
        device = torch.device(config.device)
        cells = [
            _to_map(memory.judge("patch", one.patches.to(device), config.temperature, head.patch, config.patch_quantile), one)
            for one in chosen
        ]
        descriptors = torch.stack([one.descriptor for one in chosen]).to(device)
        images = memory.judge("image", descriptors, config.temperature, head.image, config.image_quantile)
        losses = segmentation_losses(torch.stack(cells), torch.stack([one.mask for one in chosen]).to(device))
        return losses | {"image": scaled_cross_entropy(images, torch.tensor([one.label for one in chosen], device=device))}

    _train("projections", head, loss, config.epochs, len(memory.images), config, fade, run, report)


def train_prompts(
    judge: PromptJudge, head: MemoryHead, memory: LabelledMemory, read: Read, config: Any, run: TrainingRun, report: Progress
) -> None:
    """Train the prompts in place, projections held: the second stage of MRAD-CLIP. Arguments and errors as `train_head`."""
    head.to(config.device)

    def loss(batch: Tensor) -> dict[str, Tensor]:
        chosen = [read(i) for i in batch.tolist()]
        patches = [one.patches.to(config.device) for one in chosen]
        with torch.no_grad():
            seen = [memory.judge("patch", one, config.temperature, head.patch, config.patch_quantile)[:, 1] for one in patches]
        cells = [_to_map(found, one) for found, one in zip(judge.judge(patches, seen), chosen, strict=True)]
        return segmentation_losses(torch.stack(cells), torch.stack([one.mask for one in chosen]).to(config.device), both=True)

    _train("prompts", judge.prompts, loss, config.prompt_epochs, len(memory.images), config, False, run, report)
    head.cpu()


def _train(
    name: str,
    module: MemoryHead | Prompts,
    loss: Callable[[Tensor], dict[str, Tensor]],
    epochs: int,
    count: int,
    config: Any,
    fade: bool,
    run: TrainingRun,
    report: Progress,
) -> None:
    steps = epochs * math.ceil(count / config.batch)

    def rate(step: int) -> float:
        last = LAST_RATE / config.rate
        return last + (1 - last) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2

    settings = {key: getattr(config, key) for key in ("rate", "batch", "temperature", "image_quantile", "patch_quantile", "image_size")}
    task = Task(
        name,
        {"samples": count, "fade": fade, **settings},
        {name: module},
        lambda: torch.optim.Adam(module.parameters(), config.rate, betas=(0.5, 0.999)),
        epochs,
        lambda epoch, generator: shuffle_batches(count, config.batch, generator),
        loss,
        rate=rate if fade else None,
    )
    train(task, TrainingSettings(config.seed, device=config.device), run, report)
    module.cpu()


def _to_map(probability: Tensor, one: Labelled) -> Tensor:
    """Return the (2, h, w) map of (P, 2) probabilities."""
    return probability.T.reshape(2, *one.grid)
