"""muscv2: zero-shot; every part of an unlabelled set is judged by the others (transductive).

MuSc-V2 (TPAMI 2026, arXiv 2511.10047): iterative point grouping, aggregation of like neighbours, mutual scores, cross-modal
enhancement, re-scoring over the set. A normal patch finds its like in most other parts, a defect in few.
Differs from its code (`reference=True` restores it): patches are brought to mean length 1 before they are aggregated; modalities are
brought to one scale before their maps add; maps are blurred in floats and keep cell centres in place; the image score is the mean of
the map's top 0.5 %; re-scoring compares directions. In either form ties keep their order and the interval holds at least one sample.
Weights: embedded Apache-2.0; DINO Apache-2.0; Point-MAE's authors state no licence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mm3dad.errors import DataError
from mm3dad.fusion.crossmodal import enhance_published
from mm3dad.fusion.rescore import rescore
from mm3dad.methods._config import MODALITIES, check_modalities, check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress
from mm3dad.methods._set import Described, SetSource
from mm3dad.scoring.maps import blur_8bit, smooth_map, top_fraction_score, upsample_map
from mm3dad.scoring.mutual import interval_mean, mutual_distances
from mm3dad.types import Prediction, Sample

WHOLE_SET = "muscv2 is transductive: it judges each sample of a set by the others; call predict_all(samples) with 2 or more"


@dataclass(frozen=True)
class Config:
    """Settings of `muscv2`."""

    modalities: tuple[str, ...] = option((), "rgb and / or xyz; empty uses what the data have")
    image_size: int = option(224, "side of the square input in pixels")
    backbone: str = option("efficientnet_lite0", "row of `mm3dad list weights`, or any timm architecture; published: dino_vitb8")
    layers: tuple[int, ...] = option((), "layers of the backbone, compared one by one; empty uses the published or the table's")
    weights: str = option("default", "default, the path of a state dict, or random")
    points: Literal["fpfh", "point_mae"] = option("fpfh", "group descriptor: FPFH statistics or Point-MAE tokens; published: point_mae")
    point_weights: str = option("default", "path of a Point-MAE checkpoint, or default for the cache")
    max_points: int = option(20000, "most points of a cloud, on a regular sub-grid")
    centers: int = option(1024, "point groups per cloud")
    group_size: int = option(128, "points per group")
    aggregate: bool = option(True, "similarity-weighted aggregation of neighbours")
    fraction: float = option(0.3, "share of the other samples whose distances are averaged, the smallest ones, at least one")
    enhance: bool = option(True, "cross-modal enhancement; it needs 3 samples")
    rescore: bool = option(True, "average image scores over the most similar samples of the set")
    subsets: int = option(1, "random subsets that are scored apart, which bounds time and memory of large sets")
    top: float = option(0.005, "share of the highest map values whose mean is the image score; 0 is the maximum, as published")
    smooth: float = option(4.0, "Gaussian smoothing of the point map, in pixels of a 224 x 224 image")
    reference: bool = option(False, "as the published code (see docs/methods/muscv2.md)")
    feature_cache: str = option("", "folder in which features are kept between runs; empty keeps none")
    seed: int = option(0, "of the random subsets and of random weights")
    device: str = option("cpu", "torch device of the backbone")

    def __post_init__(self) -> None:
        check_modalities(self.modalities)
        check_ranges(self, (
            ("image_size", 32, 4096), ("max_points", 128, 10**7), ("centers", 1, 10**6), ("group_size", 4, 10**5),
            ("fraction", 0.0, 1.0), ("top", 0.0, 1.0), ("subsets", 1, 10**6), ("smooth", 0.0, 100.0), ("seed", 0, 2**62),
        ))  # fmt: skip


class MuScV2(Detector):
    """Zero-shot mutual scoring of an unlabelled set; `predict_all` takes the set."""

    name = "muscv2"
    Config = Config
    needs = Needs(inputs=MODALITIES, settings=("transductive",))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._source = SetSource(self.config)

    @property
    def weights(self) -> list[dict[str, Any]]:
        return self._source.weights

    def fit(self, samples: Sequence[Sample] = (), progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> MuScV2:
        """Learn nothing: samples are accepted, none included, and not looked at; the set under test is its own reference."""
        if progress is not None:
            progress("nothing to learn", 1, 1)
        self.is_fitted = True
        return self

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        if samples:
            raise DataError(WHOLE_SET)
        return []

    def predict_all(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Score a set, its samples read twice, one at a time: for their features and for their maps.

        Raises:
            DataError: fewer than 2 samples in a subset, mixed sizes, or a sample without a modality of the others.
        """
        self._require_fit()
        count, parts = len(samples), self.config.subsets
        if count < 2 * parts:
            raise DataError(f"{WHOLE_SET}{'' if parts == 1 else f' in each of {parts} subsets'}, got {count}")
        found: list[Described] = []
        for number in range(count):
            found.append(self._source.describe(samples[number], found[0] if found else None))
        # By a hash of the id: neither the order of the samples nor the folder they lie in decides about subsets or the last bit.
        order = sorted(range(count), key=lambda i: hashlib.sha256(f"{self.config.seed}/{found[i].sample}".encode()).digest())
        scores: list[dict[str, Tensor]] = [{} for _ in range(count)]
        for part in range(parts):
            members = order[part::parts]
            for name, rows in self._score_set([found[i] for i in members]).items():
                for i, row in zip(members, rows, strict=True):
                    scores[i][name] = row
        predictions = [self._predict_one(samples[i], found[i], scores[i]) for i in range(count)]
        if self.config.rescore:
            raw = torch.tensor([predictions[i].score for i in order], dtype=torch.float64)
            salient = torch.stack([_salient(found[i], scores[i], self.config.reference) for i in order])
            for i, score in zip(order, rescore(raw, salient).tolist(), strict=True):
                predictions[i].score = score
        return predictions

    def _score_set(self, found: Sequence[Described]) -> dict[str, Tensor]:
        """Score patches and groups (N, P) by the other samples, layer by layer, and average the layers."""
        names = tuple(found[0].layers)
        depth = {name: len(found[0].layers[name]) for name in names}
        rounds = max(depth.values())
        total: dict[str, Tensor] = {}
        kept: dict[tuple[str, int], Tensor] = {}
        for turn in range(rounds):
            # A modality with fewer layers meets each layer of the other: its last distances are kept.
            level = {name: turn * depth[name] // rounds for name in names}
            kept = {key: values for key, values in kept.items() if level[key[0]] == key[1]}
            for key in level.items():
                if key not in kept:
                    kept[key] = mutual_distances(torch.stack([one.layers[key[0]][key[1]] for one in found]).float())
            for name, values in self._average({name: kept[name, level[name]] for name in names}, found).items():
                total[name] = total.get(name, 0.0) + values / rounds
        # One unit for both modalities: an ordinary patch of the set.
        units = {name: 1.0 if self.config.reference else float(values.median()) or 1.0 for name, values in total.items()}
        return {name: values / units[name] for name, values in total.items()}

    def _average(self, distances: dict[str, Tensor], found: Sequence[Described]) -> dict[str, Tensor]:
        """Average each patch's distances (N, P, N - 1) over the interval, after cross-modal enhancement where there are two modalities."""
        c = self.config
        if c.enhance and len(distances) == 2 and len(found) > 2:
            pairs = [enhance_published(distances["rgb"][i], distances["xyz"][i], one.patch_of_center) for i, one in enumerate(found)]
            rows = [[interval_mean(part, c.fraction) for part in pair] for pair in pairs]
            return {name: torch.stack(column) for name, column in zip(("rgb", "xyz"), zip(*rows, strict=True), strict=True)}
        return {name: interval_mean(part.flatten(0, 1), c.fraction).view(part.shape[:2]) for name, part in distances.items()}

    def _predict_one(self, sample: Sample, one: Described, scores: dict[str, Tensor]) -> Prediction:
        c = self.config
        maps: dict[str, Tensor] = {}
        if "rgb" in scores:
            maps["rgb"] = upsample_map(scores["rgb"].view(one.grid), sample.size, align_corners=c.reference)
        if "xyz" in scores:
            heat = self._source.points.spread(scores["xyz"], one.centers, sample)
            if sample.meta.organised:
                pixels = (sample.size[0] * sample.size[1]) ** 0.5 / 224
                heat = blur_8bit(heat, round(c.smooth * pixels)) if c.reference else smooth_map(heat, c.smooth * pixels)
            maps["xyz"] = heat
        total = torch.stack(list(maps.values())).sum(0).clamp_min(0)
        parts = {f"{name}_map": heat.clamp_min(0) for name, heat in maps.items()}
        parts |= {f"{name}_score": heat.max() for name, heat in maps.items()}
        return Prediction(top_fraction_score(total, 0.0 if c.reference else c.top), total, parts, meta=sample.meta)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Nothing was learnt."""


def _salient(one: Described, scores: dict[str, Tensor], published: bool) -> Tensor:
    """Return the middle layer's features at the highest score of each modality, beside each other.

    Of unit length, a sample is the one most like itself; aggregated point groups are shorter where the surface is flat.
    """
    found = [one.layers[name][max(len(one.layers[name]) - 2, 0)][int(values.argmax())].double() for name, values in scores.items()]
    return torch.cat([row if published else normalize(row, dim=0) for row in found])
