"""btf: image features and FPFH of the same cell, side by side in one bank.

Back to the Feature, "Back to the Feature: Classical 3D Features are (Almost) All You Need for 3D Anomaly Detection" (CVPRW 2023,
arXiv 2203.05550; multimodal sheet, part 3). Differs from its code: each modality's block has total spread 1, pixels without a point do not
dilute a cell, the map is smoothed by a real Gaussian instead of in 8 bits; `reference=True` restores all three.
Weights: embedded Apache-2.0; the paper's WideResNet-50-2 BSD-3-Clause. FPFH needs none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mm3dad.features.branches import Patches
from mm3dad.features.patchmaps import Join, pool_layers
from mm3dad.memory.coreset import projection_size
from mm3dad.memory.flat import FlatBank, balance_blocks
from mm3dad.methods._config import MODALITIES
from mm3dad.methods._detector import Needs, Progress
from mm3dad.methods._retrieval import RetrievalConfig, RetrievalDetector
from mm3dad.scoring.nearest import reweight_score


@dataclass(frozen=True)
class Config(RetrievalConfig):
    """Settings of `btf`."""


class BTF(RetrievalDetector):
    """Both modalities in one descriptor per cell, one bank, PatchCore's search."""

    name = "btf"
    Config = Config
    needs = Needs(inputs=MODALITIES, settings=("one-class", "few-shot", "multi-class"))
    raw_histograms = True

    @property
    def _join(self) -> Join:
        return pool_layers

    def _arrange(self, found: dict[str, Patches]) -> dict[str, Patches]:
        """Set the modalities' features of each cell side by side."""
        first = next(iter(found.values()))
        self._widths = [part.features.shape[1] for part in found.values()]
        return {"cell": Patches(torch.cat([part.features for part in found.values()], dim=1), first.place, first.grid)}

    def _remember(self, full: dict[str, FlatBank], report: Progress) -> dict[str, FlatBank]:
        bank = full["cell"]
        bank.seal()
        if not self.config.reference:
            bank.rescale(*balance_blocks(bank.rows, self._widths))
        report("coreset", 0, 1)
        return {"cell": bank.thin(self._choose_rows(bank, projection_size(len(bank.rows))))}

    def _image_score(self, name: str, rows: Tensor, distance: Tensor, index: Tensor, bank: FlatBank) -> float:
        return reweight_score(rows, distance, index, bank.rows.float(), self.config.neighbors)
