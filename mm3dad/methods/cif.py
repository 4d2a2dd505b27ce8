"""cif: each image is a hypergraph of semantic groups; few normal images fill a memory ordered by the same groups.

CIF, "Commonality in Few" (AAAI 2026, arXiv 2511.05966). Test features take in a little of the memory's by message passing, and are
then searched both in the whole memory and in the hyperedges like their own; modalities multiply. Nothing is trained.
Differs from its code (`reference=True` restores it): a patch counts to its most similar hyperedge, not its first; empty hyperedges
leave the memory; a missed one is searched everywhere instead of scoring 1e6; holes in the cloud do not enter the cells; FPFH cells
are centred and carry relief; borders of the map are not darkened.
Weights: embedded Apache-2.0; DINO Apache-2.0; Point-MAE's authors state no licence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.features.pixelmap import fit_scale
from mm3dad.memory.hypergraph import hyperedge_features
from mm3dad.memory.messages import pass_messages
from mm3dad.memory.structured import MISSED, HypergraphMemory, add_shot, sample_memory, search_hyperedges
from mm3dad.methods._config import MODALITIES, check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress, score_validation
from mm3dad.methods._graphs import GraphSource, Image
from mm3dad.scoring.calibrate import fold_indices, threshold_for_rate
from mm3dad.scoring.maps import smooth_boxes, upsample_map
from mm3dad.scoring.nearest import nearest_scores, support_score
from mm3dad.types import Prediction, Sample

PUBLISHED_SIZE = 224


@dataclass(frozen=True)
class Config:
    """Settings of `cif`."""

    modalities: tuple[str, ...] = option((), "rgb, or rgb,xyz; empty uses what the data have. The hypergraph is always the image's")
    image_size: int = option(224, "side of the square input in pixels")
    backbone: str = option("efficientnet_lite0", "row of `mm3dad list weights`, or any timm architecture; published: dino_vitb8")
    layers: tuple[int, ...] = option((), "layers of the backbone; empty uses the table's")
    weights: str = option("default", "default, the path of a state dict, or random")
    points: Literal["fpfh", "point_mae"] = option("fpfh", "point features: FPFH or Point-MAE tokens; published: point_mae")
    point_weights: str = option("default", "path of a Point-MAE checkpoint, or default for the cache")
    point_side: int = option(112, "side of the square the cloud is brought to by nearest pixels; published: 224")
    centers: int = option(1024, "Point-MAE groups per cloud")
    group_size: int = option(128, "points per Point-MAE group")
    hyperedges: int = option(4, "hyperedges per image; published: 4 on MVTec 3D-AD, 8 on Eyecandies")
    incidence: float = option(0.9, "a patch joins every hyperedge whose stretched cosine reaches this")
    coreset: float = option(0.1, "share of the patches of all normal images in the memory")
    loops: int = option(1, "steps of message passing between test image and memory")
    alpha: float = option(0.9, "share of a feature that message passing leaves")
    top: int = option(3, "hyperedges of the memory a patch is searched in")
    neighbors: int = option(9, "memory rows around the matched one that weigh the image score")
    reference: bool = option(False, "as the published code, slips included (see docs/methods/cif.md)")
    folds: int = option(5, "folds over the normal images for the threshold, where there is no validation split")
    false_alarms: float = option(0.01, "rate of false alarms the threshold aims at")
    feature_cache: str = option("", "folder in which features are kept between runs; empty keeps none")
    seed: int = option(0, "of k-means and the first picks of the memory")
    device: str = option("cpu", "torch device of the backbone")

    def __post_init__(self) -> None:
        if self.modalities and (set(self.modalities) - set(MODALITIES) or "rgb" not in self.modalities):
            raise ConfigError(f"cif takes modalities rgb or rgb,xyz, got {','.join(self.modalities)}; its hypergraph is built on the image")
        check_ranges(self, (
            ("image_size", 32, 4096), ("point_side", 8, 4096), ("centers", 1, 10**6), ("group_size", 4, 10**5), ("hyperedges", 1, 1000),
            ("incidence", 1e-6, 1.0), ("coreset", 0.0, 1.0), ("loops", 0, 100), ("alpha", 0.0, 1.0), ("top", 1, 1000),
            ("neighbors", 1, 10**5), ("folds", 2, 1000), ("false_alarms", 1e-9, 0.999), ("seed", 0, 2**62),
        ))  # fmt: skip


class Cif(Detector):
    """Hypergraphs, structure-guided memory, message passing and hyperedge-guided search."""

    name = "cif"
    Config = Config
    needs = Needs(inputs=MODALITIES, settings=("few-shot", "one-class"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._source = GraphSource(self.config)
        self._memory: dict[str, HypergraphMemory] = {}
        self._scale: tuple[Tensor, Tensor] | None = None

    @property
    def weights(self) -> list[dict[str, Any]]:
        uses_points = "xyz" in (tuple(self._memory) or self.config.modalities or MODALITIES)
        return [*self._source.images.weights, *(self._source.points.weights if uses_points else [])]

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Cif:
        if len(samples) == 0:
            raise DataError("cif needs at least one normal sample, got none; check the training folder")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted, self._scale = False, None
        names = self.config.modalities or samples[0].modalities
        shots = []
        for number in range(len(samples)):
            report("features", number, len(samples))
            shots.append(self._source.describe(samples[number], names))
        report("memory", 0, 1)
        if "xyz" in names and self._source.points.blocks:
            self._scale = fit_scale([shot.features["xyz"][shot.graph.ids >= 0] for shot in shots], self._source.points.blocks)
            shots = [shot.rescale(self._scale) for shot in shots]
        self._memory = self._remember(shots)
        scores = score_validation(validation, report, lambda sample: self._score(self._describe(sample, names), self._memory)[0])
        if not scores and len(shots) > 1:
            for fold in fold_indices(len(shots), self.config.folds):
                held = set(fold.tolist())
                memory = self._remember([shot for i, shot in enumerate(shots) if i not in held])
                scores += [self._score(shots[i], memory)[0] for i in sorted(held)]
        self._threshold = threshold_for_rate(torch.tensor(scores), self.config.false_alarms) if scores else None
        self.is_fitted = True
        return self

    def _describe(self, sample: Sample, names: Sequence[str]) -> Image:
        return self._source.describe(sample, names).rescale(self._scale)

    def _remember(self, shots: Sequence[Image]) -> dict[str, HypergraphMemory]:
        """Fill one memory per modality, image by image, and thin each of its hyperedges."""
        memory: dict[str, HypergraphMemory] = {}
        for shot in shots:
            for name, features in shot.features.items():
                edges = hyperedge_features(features, shot.graph.incidence)
                memory[name] = add_shot(memory.get(name), features, shot.graph.ids, edges, tidy=not self.config.reference)
        patches = sum(len(shot.graph.ids) for shot in shots)
        target = max(1, int(self.config.coreset * patches))
        return {name: sample_memory(part, min(target, len(part.rows)), self.config.seed) for name, part in memory.items()}

    def _score(self, image: Image, memories: dict[str, HypergraphMemory]) -> tuple[float, dict[str, Tensor], dict[str, float]]:
        """Return the image score, and per modality the patch scores (N,) and the image score."""
        c, graph = self.config, image.graph
        patches, scores = {}, {}
        for name, memory in memories.items():
            features = image.features[name]
            if features.shape[1] != memory.rows.shape[1]:
                raise ModelError(
                    f"the memory of {name} holds {memory.rows.shape[1]} channels, got {features.shape[1]}; "
                    "use the backbone it was fitted with"
                )
            passed = pass_messages(features, graph.incidence, memory, c.loops, c.alpha)
            nearest, index = nearest_scores(passed, memory.rows.to(passed.dtype))
            edges = hyperedge_features(passed, graph.incidence)
            within = search_hyperedges(passed, graph.ids, edges, memory, c.top, MISSED if c.reference else None)
            patches[name] = torch.where(graph.ids >= 0, nearest, 0.0) * within
            scores[name] = support_score(features, patches[name], index, memory.rows.to(passed.dtype), c.neighbors)
        return float(torch.tensor(list(scores.values()), dtype=torch.float64).prod()), patches, scores

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        return [self._predict_one(sample) for sample in samples]

    def _predict_one(self, sample: Sample) -> Prediction:
        image = self._describe(sample, tuple(self._memory))
        score, patches, scores = self._score(image, self._memory)
        maps = {name: self._to_map(values.view(image.grid), sample.size) for name, values in patches.items()}
        heat = torch.stack([upsample_map(values.view(image.grid), PUBLISHED_SIZE, self.config.reference) for values in patches.values()])
        parts = {f"{name}_map": value for name, value in maps.items()}
        parts |= {f"{name}_score": torch.tensor(value) for name, value in scores.items()}
        pixels = self._finish(heat.prod(0).clamp_min(0) ** 1.5, sample.size)
        return self._conclude(sample, score, pixels, parts)

    def _to_map(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        return self._finish(upsample_map(values, PUBLISHED_SIZE, self.config.reference), size)

    def _finish(self, heat: Tensor, size: tuple[int, int]) -> Tensor:
        """Smooth a map at the published size and carry it to the sample's pixels."""
        return upsample_map(smooth_boxes(heat, zero_padded=self.config.reference), size).clamp_min(0)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for name, part in self._memory.items():
            tensors |= {f"{name}.rows": part.rows, f"{name}.ids": part.ids.to(torch.int32), f"{name}.hyperedges": part.hyperedges}
        if self._scale is not None:
            tensors |= {"xyz.shift": self._scale[0], "xyz.factor": self._scale[1]}
        return tensors, {"modalities": list(self._memory), "threshold": self._threshold}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._memory = {
            name: HypergraphMemory(tensors[f"{name}.rows"], tensors[f"{name}.ids"].long(), tensors[f"{name}.hyperedges"])
            for name in values["modalities"]
        }
        self._scale = (tensors["xyz.shift"], tensors["xyz.factor"]) if "xyz.shift" in tensors else None
        self._threshold = values["threshold"]
