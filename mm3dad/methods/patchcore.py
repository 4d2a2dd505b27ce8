"""patchcore: the distance of each patch to the nearest one in a coreset of normal patches.

PatchCore, "Towards Total Recall in Industrial Anomaly Detection" (CVPR 2022, arXiv 2106.08265), on the image or on point features laid on
its grid. Differs from its code: exact greedy k-centre choice, Euclidean distances, feature sizes that follow the backbone, a threshold from
held-out normal samples; `reference=True` restores squared distances, the sampled start of the coreset and the published sizes.
Weights: embedded Apache-2.0; the paper's WideResNet-50-2 BSD-3-Clause.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mm3dad.errors import ConfigError
from mm3dad.features.patchmaps import Join, embed_layers
from mm3dad.memory.coreset import project_rows, sampled_anchor, select_from_anchor
from mm3dad.memory.flat import FlatBank
from mm3dad.methods._config import MODALITIES, option
from mm3dad.methods._detector import Needs, Progress
from mm3dad.methods._retrieval import Grid, RetrievalConfig, RetrievalDetector
from mm3dad.scoring.maps import pixel_map
from mm3dad.scoring.nearest import reweight_score
from mm3dad.types import Sample

PUBLISHED_DIMENSION = 1024
PUBLISHED_STARTS = 10
PROJECTION = 128  # dimensions in which the coreset is chosen, as published


@dataclass(frozen=True)
class Config(RetrievalConfig):
    """Settings of `patchcore`."""

    modalities: tuple[str, ...] = option((), "rgb or xyz, one of them; empty takes rgb where the data have it")
    neighbors: int = option(1, "bank rows that re-weigh the image score, the matched row included; 1: none, as its code (not its paper)")
    dimension: int = option(0, "numbers per patch and layer, 1024 as published; 0: the mean of 3 x 3 neighbours in each channel")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.modalities) > 1:
            raise ConfigError("patchcore looks at one modality, got modalities=rgb,xyz; choose one, or use btf, m3dm or duet")
        if not 0 <= self.dimension <= 10**5:
            raise ConfigError(f"option dimension must lie in 0 to 100000, got {self.dimension}")


class PatchCore(RetrievalDetector):
    """One modality, one bank, nearest rows."""

    name = "patchcore"
    Config = Config
    needs = Needs(inputs=MODALITIES, settings=("one-class", "few-shot", "multi-class"))

    def _choose_modalities(self, sample: Sample) -> tuple[str, ...]:
        return super()._choose_modalities(sample)[:1]

    @property
    def _dimension(self) -> int:
        return self.config.dimension or (PUBLISHED_DIMENSION if self.config.reference else 0)

    def _join_settings(self) -> object:
        return self._dimension

    @property
    def _join(self) -> Join:
        size = self._dimension
        return lambda layers, grid: embed_layers(layers, size, size)

    def _remember(self, full: dict[str, FlatBank], report: Progress) -> dict[str, FlatBank]:
        ((name, bank),) = full.items()
        bank.seal()
        report("coreset", 0, 1)
        return {name: bank.thin(self._choose_sampled(bank) if self.config.reference else self._choose_rows(bank, PROJECTION))}

    def _choose_sampled(self, bank: FlatBank) -> Tensor:
        """Choose the coreset as the published approximate sampler does, its draws seeded."""
        rows = project_rows(bank.rows.float(), PROJECTION, self.config.seed)
        generator = torch.Generator().manual_seed(self.config.seed)
        starts = torch.randperm(len(rows), generator=generator)[:PUBLISHED_STARTS]
        return select_from_anchor(rows, max(1, int(self.config.coreset * len(rows))), sampled_anchor(rows, starts))

    def _image_score(self, name: str, rows: Tensor, distance: Tensor, index: Tensor, bank: FlatBank) -> float:
        if self.config.reference:
            return published_scores(distance)[1]
        return reweight_score(rows, distance, index, bank.rows.float(), self.config.neighbors)

    def _heat(self, distance: Tensor, canvas: Grid) -> Tensor:
        patch = published_scores(distance)[0] if self.config.reference else distance
        return pixel_map(patch, canvas, self.config.smooth)


def published_scores(distance: Tensor) -> tuple[Tensor, float]:
    """Return patch scores and image score of the published code, whose search gives squared distances."""
    patch = distance.square()
    return patch, float(patch.max())
