"""resad: what is left of a patch once the most similar patch of a few normal references is taken off is alike for all products.

ResAD (NeurIPS 2024, arXiv 2410.20047) in the form of its published code, ResAD++ (IJCV 2026, arXiv 2509.23741), for convolutional
backbones. `fit` takes a labelled set of other products, from which it learns, and normal samples of those under test, its references.
Differs from its code: all levels lie on the finest grid; residuals are in units of their own size; likelihoods are compared with those of
normal auxiliary samples instead of the largest of the test set. Weights: embedded Apache-2.0; the rest is learned from the auxiliary set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm3dad.errors import DataError
from mm3dad.features.cache import Describes, keep_features
from mm3dad.features.tokens import TokenExtractor, Tokens
from mm3dad.memory.labelled import mask_cells
from mm3dad.methods._config import check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress, score_validation, strip_prefix
from mm3dad.methods._residual import (
    LOOKED_AT,
    Auxiliary,
    draw_references,
    join_cells,
    leave_references,
    measure_units,
    train_residuals,
)
from mm3dad.nets.residual_flow import ResidualFlow
from mm3dad.scoring.calibrate import threshold_for_rate
from mm3dad.scoring.maps import upsample_map
from mm3dad.scoring.residual import likelihood_map, match_histogram
from mm3dad.types import Prediction, Sample


@dataclass(frozen=True)
class Config:
    """Settings of `resad`."""

    image_size: int = option(224, "side of the square input and of the map, in pixels")
    backbone: str = option("efficientnet_lite0", "row of `mm3dad list weights`, or any timm architecture; published: wide_resnet50_2")
    layers: tuple[int, ...] = option((), "layers of the backbone, each a level; empty uses the table's")
    weights: str = option("default", "default, the path of a state dict, or random")
    draws: int = option(4, "normal samples of its product that a training sample is compared with, drawn anew each time")
    codes: int = option(256, "normal residuals each level's codebook holds; published: 1536")
    alpha: float = option(0.4, "share of a residual's own values when it is moved to the distribution of normal ones; 1 moves nothing")
    blocks: int = option(4, "coupling blocks of each level's flow; published: 10, and 8 in the paper")
    position: int = option(64, "channels of the position code; published: 256")
    warm: int = option(5, "first epochs, whose flows see normal cells alone; published: 10, whose other parts see normal samples alone too")
    epochs: int = option(25, "epochs of 10 steps; published: 100 passes over the auxiliary set")
    batch: int = option(4, "samples in a step; published: 32")
    rate: float = option(1e-3, "learning rate of Adam; published: 1e-5 for far more steps")
    smooth: float = option(4.0, "Gaussian smoothing of the map, in its pixels")
    false_alarms: float = option(
        0.01, "rate of false alarms of the threshold, which normal validation samples set; without them there is none"
    )
    feature_cache: str = option("", "folder in which features are kept between runs; empty keeps none")
    seed: int = option(0, "of initial weights and batches")
    device: str = option("cpu", "torch device of the backbone and of the training")

    def __post_init__(self) -> None:
        check_ranges(self, (
            ("image_size", 32, 4096), ("draws", 1, 1000), ("codes", 1, 10**6), ("alpha", 0.0, 1.0), ("blocks", 1, 100),
            ("position", 4, 4096), ("warm", 0, 10**6), ("epochs", 1, 10**6), ("batch", 1, 10**4), ("rate", 1e-9, 1.0),
            ("smooth", 0.0, 100.0), ("false_alarms", 1e-9, 0.999), ("seed", 0, 2**62),
        ))  # fmt: skip


class ResAD(Detector):
    """Residuals to references, and one likelihood of them for all products."""

    name = "resad"
    Config = Config
    needs = Needs(inputs=("rgb",), settings=("auxiliary", "few-shot"), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made: Describes[Tokens] | None = None
        self._net: ResidualFlow | None = None
        self._units: list[float] = []  # size of each level's residuals
        self._tops: list[float] = []  # largest log-likelihood of a normal auxiliary cell, per level
        self._references: dict[str, list[Tensor]] = {}  # levels (R, C) by product

    @property
    def extractor(self) -> Describes[Tokens]:
        """The encoder, made when it is first needed."""
        c = self.config
        if self._made is None:
            made = TokenExtractor(c.backbone, c.layers, c.weights, c.image_size, c.device, c.seed)
            self._made = keep_features(made, Tokens, c.feature_cache, "tokens", c.backbone, c.layers, c.image_size, 1.0)
        return self._made

    @property
    def weights(self) -> list[dict[str, Any]]:
        return self.extractor.weights

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> ResAD:
        """Learn from labelled samples of other products and remember references.

        Args:
            samples: normal and defective samples with masks of other products, and normal samples of those under test. A product without
                a defective sample is one under test; where each product has some, their normal samples are the references.
            progress: called with (stage, done, total).
            validation: normal samples of the products under test; they set the threshold and nothing else.
        Raises:
            DataError: no sample, no normal or no defective one of other products, a defective one without mask, a sample without image.
        """
        if len(samples) == 0:
            raise DataError("resad needs an auxiliary set with at least one normal sample, got none; check --auxiliary")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted = False
        self._units = []
        found = []
        for number in range(len(samples)):
            report("features", number, len(samples))
            found.append(self._read(samples[number]))
        products = {one.category for one in found if not one.is_good}
        known = [one for one in found if one.category in products]
        for word, count in (("defective", len(products)), ("normal", sum(one.is_good for one in known))):
            if not count:
                raise DataError(
                    f"the auxiliary set must hold normal and defective samples of the same products, got {len(found)} samples and no "
                    f"{word} one; use a labelled test split of other products"
                )
        self._units = measure_units(known, self.config.draws, self.config.seed)
        scaled = [one.scale(self._units) for one in known]
        self._net = self._make_net([level.shape[1] for level in known[0].levels])
        train_residuals(self._net, scaled, self.config, self.training, report)
        self._tops = self._find_tops(scaled)
        kept = [one for one in found if one.category not in products] or [one for one in known if one.is_good]
        names = sorted({one.category for one in kept})
        self._references = {name: join_cells([one for one in kept if one.category == name]) for name in names}
        self.is_fitted = True
        self._threshold = None
        if scores := score_validation(validation, report, lambda sample: self.predict(sample).score):
            self._threshold = threshold_for_rate(torch.tensor(scores), self.config.false_alarms)
        return self

    def _make_net(self, widths: Sequence[int]) -> ResidualFlow:
        c = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(c.seed)
            return ResidualFlow(widths, c.codes, c.blocks, c.position, c.seed).eval()

    def _read(self, sample: Sample) -> Auxiliary:
        name = sample.meta.id
        is_good = sample.label != 1
        if not is_good and (sample.mask is None or not bool(sample.mask.any())):
            kind = "no" if sample.mask is None else "an empty"
            raise DataError(f"auxiliary sample {name!r} is defective and has {kind} mask; add it to gt/")
        tokens = self.extractor.describe([sample])[0]
        mask = torch.zeros(sample.size, dtype=torch.bool) if is_good or sample.mask is None else sample.mask
        anomalous, normal = mask_cells(mask, tokens.grid)
        return Auxiliary([level.half() for level in tokens.layers], normal, normal | anomalous, sample.meta.category, is_good)

    @torch.no_grad()
    def _find_tops(self, known: list[Auxiliary]) -> list[float]:
        """Return the largest log-likelihood of normal auxiliary cells, per level."""
        generator = torch.Generator().manual_seed(self.config.seed)
        good = [number for number, one in enumerate(known) if one.is_good][:LOOKED_AT]
        found = []
        for number in good:
            drawn = draw_references(known, number, self.config.draws, generator)
            found.append(self._judge(known[number].levels, join_cells([known[i] for i in drawn])))
        return [max(float(likelihood.max()) for likelihood, _ in level) for level in zip(*found, strict=True)]

    def _judge(self, levels: list[Tensor], references: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return per level log-likelihood and probability (h, w) of scaled levels (P, C) beside references (R, C)."""
        assert self._net is not None
        moved = []
        for level, residual in enumerate(leave_references(levels, references)):
            rows = residual[0].flatten(1).T
            target = self._net.codebooks[level](rows)
            moved.append(match_histogram(rows, target, self.config.alpha).T.reshape(residual.shape))
        return [(likelihood[0], probability[0]) for likelihood, probability in self._net(moved)]

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        return [self._predict_one(sample) for sample in samples]

    @torch.no_grad()
    def _predict_one(self, sample: Sample) -> Prediction:
        tokens = self.extractor.describe([sample])[0]
        references = self._find_references(sample)
        levels, references = (
            [one.float() / unit for one, unit in zip(part, self._units, strict=True)] for part in (tokens.layers, references)
        )
        found = self._judge(levels, references)
        size = self.config.image_size, self.config.image_size
        maps = likelihood_map([one[0] for one in found], [one[1] for one in found], size, self._tops, self.config.smooth)
        heat = ((maps[0] + maps[1]) / 2).clamp_min(0)
        score = float(heat.max())
        pixels = upsample_map(heat, sample.size)
        return self._conclude(sample, score, pixels, {"rgb_map": pixels})

    def _find_references(self, sample: Sample) -> list[Tensor]:
        if sample.meta.category in self._references:
            return self._references[sample.meta.category]
        if len(self._references) == 1:
            return next(iter(self._references.values()))
        known = ", ".join(sorted(self._references))
        raise DataError(
            f"sample {sample.meta.id!r} is of product {sample.meta.category!r}, and this model has references of {known}; fit with some"
        )

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        assert self._net is not None
        tensors = {f"net.{key}": value for key, value in self._net.state_dict().items()}
        names = sorted(self._references)
        for number, name in enumerate(names):
            tensors |= {f"references.{number}.{level}": rows for level, rows in enumerate(self._references[name])}
        return tensors, {"units": self._units, "tops": self._tops, "products": names, "threshold": self._threshold}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._units, self._tops, self._threshold = values["units"], values["tops"], values["threshold"]
        count = len(self._units)
        self._references = {
            name: [tensors[f"references.{number}.{level}"] for level in range(count)] for number, name in enumerate(values["products"])
        }
        self._net = self._make_net([rows.shape[1] for rows in next(iter(self._references.values()))])
        self._net.load_state_dict(strip_prefix(tensors, "net."))
