"""resad: what is left of a patch once the most similar patch of a few normal references is taken off is alike for all products.

ResAD (NeurIPS 2024, arXiv 2410.20047) in the form of its published code, ResAD++ (IJCV 2026, arXiv 2509.23741), for convolutional
backbones. `fit` takes a labelled set of other products, from which it learns, and normal samples of those under test, its references.
Differs from its code: where there is a cloud, its features are a further level (published: images alone); all levels lie on the finest
grid; residuals are in units of their own size; likelihoods are compared with those of normal auxiliary samples instead of the largest of
the test set. Weights: embedded Apache-2.0; the rest is learned from the auxiliary set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mm3dad.errors import DataError
from mm3dad.memory.labelled import mask_cells
from mm3dad.methods._config import MODALITIES, check_modalities, check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress, score_validation, strip_prefix
from mm3dad.methods._levels import LevelSource
from mm3dad.methods._residual import (
    LOOKED_AT,
    Auxiliary,
    Scale,
    draw_references,
    find_scales,
    join_cells,
    leave_references,
    scale_levels,
    train_residuals,
)
from mm3dad.nets.residual_flow import ResidualFlow
from mm3dad.scoring.calibrate import threshold_for_rate
from mm3dad.scoring.maps import upsample_map
from mm3dad.scoring.residual import likelihood_map, match_histogram
from mm3dad.types import Prediction, Sample

WORDS = ("shift", "factor")


@dataclass(frozen=True)
class Config:
    """Settings of `resad`."""

    modalities: tuple[str, ...] = option((), "rgb and / or xyz; empty uses what all samples have; published: rgb")
    image_size: int = option(224, "side of the square input and of the map, in pixels")
    backbone: str = option("efficientnet_lite0", "row of `mm3dad list weights`, or any timm architecture; published: wide_resnet50_2")
    layers: tuple[int, ...] = option((), "layers of the backbone, each a level; empty uses the table's")
    weights: str = option("default", "default, the path of a state dict, or random")
    max_points: int = option(10000, "most points of a cloud")
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
        check_modalities(self.modalities)
        check_ranges(self, (
            ("image_size", 32, 4096), ("max_points", 128, 10**7), ("draws", 1, 1000), ("codes", 1, 10**6), ("alpha", 0.0, 1.0),
            ("blocks", 1, 100), ("position", 4, 4096), ("warm", 0, 10**6), ("epochs", 1, 10**6), ("batch", 1, 10**4),
            ("rate", 1e-9, 1.0), ("smooth", 0.0, 100.0), ("false_alarms", 1e-9, 0.999), ("seed", 0, 2**62),
        ))  # fmt: skip


class ResAD(Detector):
    """Residuals to references, and one likelihood of them for all products."""

    name = "resad"
    Config = Config
    needs = Needs(inputs=MODALITIES, settings=("auxiliary", "few-shot"), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._source = LevelSource(self.config)
        self._modalities: tuple[str, ...] = ()
        self._net: ResidualFlow | None = None
        self._scales: list[Scale] = []
        self._tops: list[float] = []  # largest log-likelihood of a normal auxiliary cell, per level
        self._ordinary: dict[str, tuple[float, float]] = {}  # mean and spread of what a normal auxiliary sample reaches, per modality
        self._references: dict[str, list[Tensor]] = {}  # levels (R, C) by product

    @property
    def weights(self) -> list[dict[str, Any]]:
        names = self._modalities or self.config.modalities or MODALITIES
        return self._source.images.weights if "rgb" in names else []

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> ResAD:
        """Learn from labelled samples of other products and remember references.

        Args:
            samples: normal and defective samples with masks of other products, and normal samples of those under test. A product without
                a defective sample is one under test; where each product has some, their normal samples are the references.
            progress: called with (stage, done, total).
            validation: normal samples of the products under test; they set the threshold and nothing else.
        Raises:
            DataError: no sample, no normal or no defective one of other products, a defective one without mask, a modality
                that is asked for and missing, or none that all samples have.
        """
        if len(samples) == 0:
            raise DataError("resad needs an auxiliary set with at least one normal sample, got none; check --auxiliary")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted = False
        read = []
        for number in range(len(samples)):
            report("features", number, len(samples))
            read.append(self._read(samples[number]))
        self._modalities = tuple(name for name in MODALITIES if all(name in levels for levels, _ in read))
        if not self._modalities:
            raise DataError(
                "resad compares samples in a modality that all of them have, got some with images alone and some with clouds alone"
            )
        found = [replace(one, levels=self._join(levels)) for levels, one in read]
        products = {one.category for one in found if not one.is_good}
        known = [one for one in found if one.category in products]
        for word, count in (("defective", len(products)), ("normal", sum(one.is_good for one in known))):
            if not count:
                raise DataError(
                    f"the auxiliary set must hold normal and defective samples of the same products, got {len(found)} samples and no "
                    f"{word} one; use a labelled test split of other products"
                )
        self._scales = find_scales(known, self._modalities, self.config.draws, self.config.seed)
        scaled = [one.scale(self._scales) for one in known]
        self._net = self._make_net([level.shape[1] for level in known[0].levels])
        train_residuals(self._net, scaled, self.config, self.training, report)
        self._look_at_normals(scaled)
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

    def _describe(self, sample: Sample) -> tuple[dict[str, list[Tensor]], tuple[int, int]]:
        """Return the levels of each modality that is used, or while fitting of each that may be."""
        wanted = self._modalities if self.is_fitted else self.config.modalities
        for name in wanted:
            if name not in sample.modalities:
                raise DataError(
                    f"sample {sample.meta.id!r} has no {name}, which this resad model uses; complete it, or fit with "
                    f"modalities={','.join(sample.modalities)}"
                )
        return self._source.describe(sample, wanted or MODALITIES)

    def _join(self, levels: dict[str, list[Tensor]]) -> list[Tensor]:
        return [level.half() for name in self._modalities for level in levels[name]]

    def _read(self, sample: Sample) -> tuple[dict[str, list[Tensor]], Auxiliary]:
        name = sample.meta.id
        is_good = sample.label != 1
        if not is_good and (sample.mask is None or not bool(sample.mask.any())):
            kind = "no" if sample.mask is None else "an empty"
            raise DataError(f"auxiliary sample {name!r} is defective and has {kind} mask; add it to gt/")
        levels, grid = self._describe(sample)
        mask = torch.zeros(sample.size, dtype=torch.bool) if is_good or sample.mask is None else sample.mask
        anomalous, normal = mask_cells(mask, grid)
        return levels, Auxiliary([], normal, normal | anomalous, sample.meta.category, is_good)

    @torch.no_grad()
    def _look_at_normals(self, known: list[Auxiliary]) -> None:
        """Find the largest log-likelihood of normal auxiliary cells, and what the maps of normal auxiliary samples reach."""
        generator = torch.Generator().manual_seed(self.config.seed)
        good = [number for number, one in enumerate(known) if one.is_good][:: max(1, sum(one.is_good for one in known) // LOOKED_AT)]
        found = []
        for number in good:
            drawn = draw_references(known, number, self.config.draws, generator)
            found.append(self._judge(known[number].levels, join_cells([known[i] for i in drawn])))
        self._tops = [max(float(likelihood.max()) for likelihood, _ in level) for level in zip(*found, strict=True)]
        heats = [self._heat(one) for one in found]
        for name in self._modalities:
            reached = torch.stack([one[name].max() for one in heats])
            spread = float(reached.std(correction=0)) or max(float(reached.mean()), 1e-6)  # one sample, or samples alike
            self._ordinary[name] = float(reached.mean()), spread

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
        levels = self._join(self._describe(sample)[0])
        found = self._judge(*(scale_levels(part, self._scales) for part in (levels, self._find_references(sample))))
        # From what normal samples reach, in their spread: a modality that sees nothing adds little.
        maps = {}
        for name, heat in self._heat(found).items():
            usual, spread = self._ordinary[name]
            maps[f"{name}_map"] = softplus((heat - usual) / spread)
        heat = torch.stack(list(maps.values())).sum(0)
        score = float(heat.max())
        parts = {name: upsample_map(value, sample.size) for name, value in maps.items()}
        return self._conclude(sample, score, upsample_map(heat, sample.size), parts)

    def _heat(self, found: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return the map of each modality: the mean of how unlikely a cell is as a normal one and how probable as an anomalous one."""
        first = len(found) - ("xyz" in self._modalities)  # a cloud is the last level
        size, maps = (self.config.image_size, self.config.image_size), {}
        for name, levels in (("rgb", slice(0, first)), ("xyz", slice(first, None))):
            if name in self._modalities:
                likely, probable = zip(*found[levels], strict=True)
                maps[name] = torch.stack(likelihood_map(likely, probable, size, self._tops[levels], self.config.smooth)).mean(0)
        return maps

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
        tensors |= {f"scale.{level}.{word}": one for level, pair in enumerate(self._scales) for word, one in zip(WORDS, pair, strict=True)}
        values = {"modalities": list(self._modalities), "tops": self._tops, "ordinary": self._ordinary}
        return tensors, values | {"products": names, "threshold": self._threshold}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._modalities, self._tops, self._threshold = tuple(values["modalities"]), values["tops"], values["threshold"]
        self._ordinary = {name: (found[0], found[1]) for name, found in values["ordinary"].items()}
        count = len(self._tops)
        self._scales = [(tensors[f"scale.{level}.shift"], tensors[f"scale.{level}.factor"]) for level in range(count)]
        self._references = {
            name: [tensors[f"references.{number}.{level}"] for level in range(count)] for number, name in enumerate(values["products"])
        }
        self._net = self._make_net([rows.shape[1] for rows in next(iter(self._references.values()))])
        self._net.load_state_dict(strip_prefix(tensors, "net."))
