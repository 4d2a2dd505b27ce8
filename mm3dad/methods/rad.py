"""rad: retrieve whole normal images by their class token, then compare each patch with theirs near the same place.

RAD, "Is Training Necessary for Anomaly Detection?" (ICML 2026, arXiv 2601.22763). Nothing is trained; one bank serves one class or all.
Differs from its code: no centre crop and no damped border (`reference=True` restores both), k clamped to the bank, half-precision
bank of which only retrieved images are read. Weights: embedded Apache-2.0; the paper's DINOv3 under the DINOv3 License.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm3dad.errors import DataError, ModelError
from mm3dad.features.cache import Describes, keep_features
from mm3dad.features.tokens import TokenExtractor, Tokens
from mm3dad.fusion.layers import fuse_layers
from mm3dad.memory.layered import LayeredBank
from mm3dad.methods._config import check_ranges, check_window, option
from mm3dad.methods._detector import Detector, Needs, Progress, score_validation
from mm3dad.scoring.calibrate import held_out_numbers, threshold_for_rate
from mm3dad.scoring.maps import blur_5x5, top_fraction_score, upsample_map
from mm3dad.scoring.windowed import windowed_scores
from mm3dad.types import Prediction, Sample

PUBLISHED_CROP = 448 / 512


@dataclass(frozen=True)
class Config:
    """Settings of `rad`."""

    image_size: int = option(224, "side of the square input in pixels; the paper's DINOv3 runs at 448")
    backbone: str = option("efficientnet_lite0", "row of `mm3dad list weights`, or any timm architecture; published: dinov3_vitb16")
    layers: tuple[int, ...] = option((), "layers of the backbone, the last one retrieves; empty uses the table's; published: 3,6,9,11")
    weights: str = option("default", "default, the path of a state dict, or random")
    neighbors: int = option(150, "similar normal images whose patches are searched")
    window: int | None = option(1, "search within this many cells of the same place, for aligned parts; none: everywhere")
    layer_weights: tuple[float, ...] = option((), "weight of each layer, brought to sum 1; empty: equal")
    map_size: int = option(256, "side of the map from which the image score is taken")
    top: float = option(0.01, "share of the highest map values whose mean is the image score; 0 is the maximum")
    reference: bool = option(False, "as published: centre crop to 7/8 of the image, map smoothed with zeros beyond its border")
    false_alarms: float = option(0.01, "rate of false alarms the threshold aims at")
    bank_folder: str = option("", "folder for the memory-mapped bank while fitting; empty fits in memory")
    feature_cache: str = option("", "folder in which features are kept between runs; empty keeps none")
    seed: int = option(0, "of random weights")
    device: str = option("cpu", "torch device of the backbone")

    def __post_init__(self) -> None:
        check_ranges(self, (
            ("image_size", 32, 4096), ("neighbors", 1, 10**6), ("map_size", 8, 4096), ("top", 0.0, 1.0), ("false_alarms", 1e-9, 0.999),
        ))  # fmt: skip
        check_window(self.window)


class Rad(Detector):
    """Global retrieval of images, local retrieval of patches in every layer, mean over layers."""

    name = "rad"
    Config = Config
    needs = Needs(inputs=("rgb",), settings=("one-class", "few-shot", "multi-class"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made: Describes[Tokens] | None = None
        self._crop = PUBLISHED_CROP if self.config.reference else 1.0
        self._bank = LayeredBank(0)
        self._grid = (0, 0)

    @property
    def extractor(self) -> Describes[Tokens]:
        """The encoder, made when it is first needed."""
        c = self.config
        if self._made is None:
            made = TokenExtractor(c.backbone, c.layers, c.weights, c.image_size, c.device, c.seed, self._crop)
            self._made = keep_features(made, Tokens, c.feature_cache, "tokens", c.backbone, c.layers, c.image_size, self._crop)
        return self._made

    @property
    def weights(self) -> list[dict[str, Any]]:
        return self.extractor.weights

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Rad:
        if len(samples) == 0:
            raise DataError("rad needs at least one normal sample, got none; check the training folder")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted = False
        self._bank = LayeredBank(len(samples), self.config.bank_folder)
        for number in range(len(samples)):
            report("features", number, len(samples))
            sample = samples[number]
            tokens = self.extractor.describe([sample])[0]
            self._bank.add(sample.meta.id, tokens.descriptor, tokens.layers)
            self._grid = tokens.grid
        self._threshold = self._choose_threshold(validation, report)
        self.is_fitted = True
        return self

    def _choose_threshold(self, validation: Sequence[Sample] | None, report: Progress) -> float | None:
        bank = self._bank
        scores = score_validation(validation, report, lambda sample: self._score(self.extractor.describe([sample])[0])[0])
        if not scores and bank.size > 1:
            held = held_out_numbers(bank.size)
            for done, i in enumerate(held):
                report("held-out scores", done, len(held))
                tokens = Tokens(bank.descriptors[i], [layer[i].float() for layer in bank.layers], self._grid)
                scores.append(self._score(tokens, exclude=i)[0])
        return threshold_for_rate(torch.tensor(scores), self.config.false_alarms) if scores else None

    def _score(self, tokens: Tokens, exclude: int | None = None) -> tuple[float, Tensor]:
        """Return the image score and the (map_size, map_size) map."""
        c, bank = self.config, self._bank
        images = bank.retrieve(tokens.descriptor, c.neighbors, exclude)
        layers = [
            windowed_scores(patches, bank.patches_of(number, images), tokens.grid, c.window) for number, patches in enumerate(tokens.layers)
        ]
        fused = fuse_layers(torch.stack(layers), c.layer_weights).view(tokens.grid)
        heat = blur_5x5(upsample_map(fused, c.map_size), "constant" if c.reference else "replicate").clamp_min(0)
        return top_fraction_score(heat, c.top), heat

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        return [self._predict_one(sample) for sample in samples]

    def _predict_one(self, sample: Sample) -> Prediction:
        score, heat = self._score(self.extractor.describe([sample])[0])
        pixels = _to_pixels(heat, sample.size, self._crop)
        return self._conclude(sample, score, pixels, {"rgb_map": pixels})

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self._bank.state(), {"grid": list(self._grid), "threshold": self._threshold}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._bank = LayeredBank.from_state(tensors)
        height, width = values["grid"]
        self._grid = int(height), int(width)
        self._threshold = values["threshold"]
        if self._bank.layers[0].shape[1] != height * width:
            raise ModelError(f"the model's bank does not fit its grid of {height} x {width}; fit and save it again")


def _to_pixels(heat: Tensor, size: tuple[int, int], crop: float) -> Tensor:
    """Carry a map to the image's pixels; what a centre crop left out scores 0."""
    inner = max(1, round(size[0] * crop)), max(1, round(size[1] * crop))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    full = heat.new_zeros(size)
    full[top : top + inner[0], left : left + inner[1]] = upsample_map(heat, inner)
    return full
