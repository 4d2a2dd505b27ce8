"""m3dm: a bank of point patches and a bank of image patches, joined by a decision layer; a third bank of fused features as an option.

M3DM, "Multimodal Industrial Anomaly Detection via Hybrid Fusion" (CVPR 2023, arXiv 2303.00601; multimodal sheet, part 4). Differs from its
code: each bank is normalised by its own mean and spread, all banks keep the same share of their rows, the decision layer and the threshold see
normal samples that are held out of the banks, and modalities enter it on one scale; `reference=True` restores the published constants, row
counts, divisor, weights, samples that see themselves, and the 8-bit blur. The fusion network trains on patches of the same place (its code: 0.26 % of them are).
Weights: embedded Apache-2.0; the paper's DINO ViT-B/8 Apache-2.0, Point-MAE not stated by its authors. The fusion network is trained on the user's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm3dad.errors import ConfigError
from mm3dad.features.align import resize_map
from mm3dad.features.branches import Patches
from mm3dad.features.patchmaps import Join, as_patches, join_finest
from mm3dad.fusion.decision import fit_one_class
from mm3dad.memory.coreset import projection_size
from mm3dad.memory.flat import FlatBank, rescale_by
from mm3dad.methods._detector import Needs, Progress
from mm3dad.methods._retrieval import MODALITIES, RetrievalConfig, RetrievalDetector, option
from mm3dad.nets.fusion_head import FeatureFusion, train_fusion
from mm3dad.scoring.maps import upsample_map
from mm3dad.scoring.nearest import own_normalisation, reweight_score, shared_normalisation
from mm3dad.types import Sample

PUBLISHED_WEIGHTS = {"xyz": 1.0, "rgb": 0.1, "fusion": 1.0}
PUBLISHED_DIVISOR = 1000.0
