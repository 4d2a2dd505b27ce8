"""duet: global and local banks of RGB patches and point groups, judged on one scale and fused.

Each modality has a bank of normal samples. The local part finds each patch's nearest patches in a coreset of all of them or, on
request, in the normal samples that the global part finds most like the one under test. A distance is judged by what the matched normal
patches score when they are held out, so that modalities, textures and products meet on one scale; the modalities then meet patch by
patch and in the image score.
Ours, after PatchCore (CVPR 2022), MuSc-V2 (arXiv 2511.10047) and M3DM (CVPR 2023). Embedded weights: Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError
from mm3dad.features.branches import Patches, augment
from mm3dad.fusion.crossmodal import enhance
from mm3dad.fusion.late import combine
from mm3dad.memory.budget import share_budget
from mm3dad.methods._config import MODALITIES, check_modalities, check_ranges, check_window, option
from mm3dad.methods._detector import Detector, Needs, Progress
from mm3dad.methods._modality import Match, Modality
from mm3dad.methods.explanation import Explanation
from mm3dad.nets.graph import Graph
from mm3dad.ops import nearest_neighbors
from mm3dad.ops.processor import return_memory
from mm3dad.scoring.calibrate import fold_indices, threshold_for_rate
from mm3dad.scoring.maps import smooth_map, top_fraction_score
from mm3dad.scoring.outside import find_strangest, judge_outside
from mm3dad.scoring.promise import normals_needed
from mm3dad.types import Prediction, Sample

Found = dict[str, tuple[Tensor, Patches]]

KINDS = ("gap", "condition")  # of distance that say whether a sample lies outside
RETURNED = 32  # samples between two returns of freed memory to the system
RANGES = (
    ("image_size", 32, 4096),
    ("max_points", 128, 10**7),
    ("centers", 1, 10**6),
    ("group_size", 4, 10**5),
    ("neighbors", 1, 10**5),
    ("folds", 2, 1000),
    ("seed", 0, 2**62),
    ("coreset", 0.0, 1.0),
    ("top", 0.0, 1.0),
    ("smooth", 0.0, 100.0),
    ("false_alarms", 1e-9, 0.999),
    ("outside_rate", 1e-9, 0.999),
    ("local_scale", 0.0, 1.0),
    ("memory_budget", 0.0, 1e6),
)


@dataclass(frozen=True)
class Config:
    """Settings of `duet`; the defaults hold for every data set."""

    modalities: tuple[str, ...] = option((), "branches to use, rgb and / or xyz; empty uses what the data have")
    image_size: int = option(224, "side of the square with as many pixels as the input of both branches")
    backbone: str = option("efficientnet_lite0", "row of `mm3dad list weights`, or any timm architecture")
    layers: tuple[int, ...] = option((), "layers of the backbone, negative from the end; empty uses the table's")
    weights: str = option("default", "default, the path of a state dict, or random")
    points: Literal["fpfh", "point_mae"] = option("fpfh", "group descriptor: FPFH statistics or Point-MAE tokens")
    point_weights: str = option("default", "path of a Point-MAE checkpoint, or default for the cache")
    max_points: int = option(20000, "most points of a cloud, on a regular sub-grid")
    centers: int = option(1024, "point groups per cloud")
    group_size: int = option(128, "points per group")
    grouping: bool = option(False, "iterative point grouping, which follows curved surfaces; off: nearest neighbours")
    aggregate: bool = option(False, "similarity-weighted aggregation of image patches")
    aggregate_points: bool = option(False, "similarity-weighted aggregation of point groups along the surface")
    coreset: float = option(0.05, "share of the rows in the local bank's coreset")
    global_bank: bool = option(False, "search the rows of the most similar normal samples; off: the coreset of all")
    neighbors: int = option(30, "similar normal samples (K)")
    window: int | None = option(None, "search only within this many cells of the same place, for aligned parts; none: everywhere")
    search: Literal["torch", "faiss"] = option("torch", "library that searches the coreset; the results are the same")
    scale: bool = option(True, "bring patch scores of the modalities to one scale by held-out normal samples; off: raw distances")
    local_scale: float = option(0.5, "share of the matched rows' own held-out scores taken off the image score's distances; 0: none")
    enhance: bool = option(False, "cross-modal enhancement between pixels and points")
    rescore: bool = option(False, "judge image scores against the most similar normal samples; off: against all")
    fusion: Literal["max", "sum", "rss"] = option("max", "how calibrated scores of the modalities combine")
    top: float = option(0.005, "share of the highest patch scores whose mean is the image score; 0 is the maximum")
    smooth: float = option(4.0, "Gaussian smoothing of the map, in pixels of a 224 x 224 image")
    folds: int = option(5, "folds over normal samples for held-out scores")
    false_alarms: float = option(0.01, "rate of false alarms the threshold aims at")
    outside_rate: float = option(0.05, "rate of normal samples that may be called outside what the model was fitted on")
    memory_budget: float = option(2.0, "GiB the process may take; where the banks would take more, samples are thinned")
    seed: int = option(0, "first pick of the coreset")
    feature_cache: str = option("", "folder in which features are kept between runs; empty keeps none")
    device: str = option("cpu", "torch device of the backbone")

    def __post_init__(self) -> None:
        check_modalities(self.modalities)
        check_ranges(self, RANGES)
        check_window(self.window)
        if self.window is not None and not self.global_bank:
            raise ConfigError("option window restricts the rows of similar samples, so it needs global_bank=true; set both, or neither")


class Duet(Detector):
    """The flagship: patches of image and cloud against banks of normal ones, on one scale of held-out spreads (design, part 4)."""

    name = "duet"
    Config = Config
    needs = Needs(inputs=MODALITIES, settings=("one-class", "few-shot", "multi-class"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._parts: dict[str, Modality] = {}
        self._thresholds: dict[str, float] = {}
        self._calibrated = False

    @property
    def weights(self) -> list[dict[str, Any]]:
        names = tuple(self._parts) or self.config.modalities or MODALITIES
        return [row for name in names for row in self._parts.get(name, Modality(name, self.config)).branch.weights]

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Duet:
        if len(samples) == 0:
            raise DataError("duet needs at least one normal sample, got none; check the training folder")
        self.is_fitted = False
        names = self.config.modalities or samples[0].modalities
        self._parts = {name: Modality(name, self.config) for name in MODALITIES if name in names}
        turns = [(q, m) for m in (False, True) for q in range(4)] if len(samples) == 1 else [(0, False)]
        networks = sum(part.branch.parameter_bytes for part in self._parts.values())
        share = share_budget(int(self.config.memory_budget * 2**30), networks, self.config.image_size, len(self._parts))
        for part in self._parts.values():
            part.open_bank(len(samples) * len(turns), share, len(self._parts))
        # A single sample is held out only from turned copies of itself, which vary less than parts do.
        self._calibrated = len(samples) > 1
        return self._learn(samples, turns, progress, validation)

    def add(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Duet:
        """Learn from further normal samples: the banks grow, and coreset, held-out scores and thresholds are chosen anew.

        The channel scale stays, so the rows of earlier samples do. Where the model knew one sample only, its turned copies go.

        Args:
            samples, progress, validation: as for `fit`; without validation samples the thresholds come from the folds.
        Raises:
            ModelError: not fitted.
            DataError: no sample, or one without a modality of the model; the model is as it was before.
        """
        self._require_fit()
        if len(samples) == 0:
            raise DataError("expected at least one normal sample to add, got none; check the folder")
        return self._relearn(None if self._calibrated else [0], samples, progress, validation)

    def forget(self, ids: Sequence[str], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Duet:
        """Forget normal samples: the banks shrink, and coreset, held-out scores and thresholds are chosen anew.

        The channel scale stays. Forgetting what was added gives back the model from before, unless the budget had thinned it.

        Args:
            ids: of samples that the model was fitted on; a product's id goes with every product that has it.
            progress, validation: as for `fit`; without validation samples the thresholds come from the folds.
        Raises:
            ModelError: not fitted.
            DataError: an id the model does not know, or fewer than 2 samples would stay; the model is as it was before.
        """
        self._require_fit()
        known, gone = next(iter(self._parts.values())).bank.ids, set(ids)
        unknown = sorted(gone.difference(known))
        if unknown:
            raise DataError(f"expected ids of samples the model was fitted on, got {unknown[0]!r}; fit.json beside the model lists them")
        keep = [number for number, identity in enumerate(known) if identity not in gone]
        if len(keep) < 2:
            raise DataError(f"at least 2 samples must stay to calibrate the model, {len(keep)} would; forget fewer, or fit again")
        return self._relearn(keep, [], progress, validation)

    def _relearn(
        self, keep: Sequence[int] | None, samples: Sequence[Sample], progress: Progress | None, validation: Sequence[Sample] | None
    ) -> Duet:
        """Keep some of the known samples and take in others; if that fails, the model is as it was before."""
        before = self._parts, self._thresholds, self._calibrated
        self._parts = {name: part.reopen(len(samples), keep) for name, part in before[0].items()}
        self._calibrated = True
        try:
            return self._learn(samples, [(0, False)], progress, validation)
        except BaseException:
            self._parts, self._thresholds, self._calibrated = before
            self.is_fitted = True
            raise

    def _learn(
        self,
        samples: Sequence[Sample],
        turns: Sequence[tuple[int, bool]],
        progress: Progress | None,
        validation: Sequence[Sample] | None,
    ) -> Duet:
        report = progress or (lambda stage, done, total: None)
        self._remember(samples, turns, report)
        self._calibrate(report)
        self.is_fitted = True
        if validation is not None and len(validation):
            scores: dict[str, list[float]] = {name: [] for name in self._parts}
            for number in range(len(validation)):
                report("validation", number, len(validation))
                sample = validation[number]
                self._require_modalities(sample, "validation")
                parts = self.predict(sample).parts
                for name, values in scores.items():
                    values.append(float(parts[f"{name}_score"]))
            self._set_thresholds(self._add_held_out(scores))
        return self

    def _add_held_out(self, scores: dict[str, list[float]]) -> dict[str, list[float]]:
        """Add the scores of held-out training samples to those of validation samples that are too few to promise the rate.

        A bank without a fold keeps most of its samples only where there are as many as folds; of fewer, the held-out scores are those of
        another model.
        """
        count = len(next(iter(scores.values())))
        known = len(next(iter(self._parts.values())).bank.ids)
        if count >= normals_needed(self.config.false_alarms) or not self._calibrated or known < self.config.folds:
            return scores
        return {name: part.normal_scores() + scores[name] for name, part in self._parts.items()}

    def _require_modalities(self, sample: Sample, role: str) -> None:
        for name in self._parts:
            if name not in sample.modalities:
                raise DataError(
                    f"{role} sample {sample.meta.id!r} has no {name}; complete it, or fit with modalities={','.join(sample.modalities)}"
                )

    def _remember(self, samples: Sequence[Sample], turns: Sequence[tuple[int, bool]], report: Progress) -> None:
        """Stream the samples' features into the banks."""
        stage = "features"
        for number in range(len(samples)):
            report(stage, number, len(samples))
            sample = samples[number]
            self._require_modalities(sample, "training")
            for turned in [augment(sample, *turn) for turn in turns] if len(turns) > 1 else [sample]:
                for part in self._parts.values():
                    part.learn(turned)
            if number % RETURNED == 0:
                return_memory()
            stage = f"features (banks of {sum(part.bank.planned_bytes for part in self._parts.values()) / 2**20:.1f} MiB)"
        start = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(self.config.seed)))
        for part in self._parts.values():
            part.bank.finish(self.config.coreset, start)

    def _calibrate(self, report: Progress) -> None:
        """Score every normal sample by banks without its fold; all scales and thresholds come from these scores."""
        count = len(next(iter(self._parts.values())).bank.ids)
        folds = [fold.tolist() for fold in fold_indices(count, self.config.folds)]
        matches = {name: part.hold_out(folds, report) for name, part in self._parts.items()}
        scores: dict[str, list[float]] = {name: [] for name in self._parts}
        for i in range(count):
            patch = self._align({name: part.bank.places_of(i) for name, part in self._parts.items()})
            for name, values in self._score({name: matches[name][i] for name in self._parts}, patch).items():
                scores[name].append(top_fraction_score(values[None], self.config.top))
        for name, part in self._parts.items():
            part.image_scores = torch.tensor(scores[name])
        self._set_thresholds({name: part.normal_scores() for name, part in self._parts.items()})

    def _set_thresholds(self, scores: dict[str, list[float]]) -> None:
        """Choose a threshold for each modality alone and for all together, so that a missing one does not move the others."""
        values = {name: torch.tensor(rows) for name, rows in scores.items()}
        values[",".join(scores)] = combine(list(values.values()), self.config.fusion)
        self._thresholds = {names: threshold_for_rate(rows, self.config.false_alarms) for names, rows in values.items()}

    def _align(self, places: dict[str, Tensor]) -> Tensor | None:
        """Return the image patch (G,) of each point group where enhancement asks for it."""
        if not self.config.enhance or len(places) < 2:
            return None
        # The nearest patch, not the one in the same cell: backbones differ in stride, and a small budget leaves gaps.
        return nearest_neighbors(places["xyz"].double(), places["rgb"].double(), 1)[1][:, 0]

    def _score(self, matches: dict[str, Match], patch: Tensor | None, for_map: bool = False) -> dict[str, Tensor]:
        """Return each modality's patch scores (P,), 0 at the ordinary, 1 at the rare; `patch` as `_align` gives it."""
        columns = {name: self._parts[name].judge(match, for_map) for name, match in matches.items()}
        if patch is not None:
            # One modality may have been matched with the coreset, the other with fewer similar samples.
            count = min(values.shape[1] for values in columns.values())
            columns = {name: values[:, :count] for name, values in columns.items()}
            pair = enhance(columns["rgb"].clamp_min(0), columns["xyz"].clamp_min(0), patch, fraction=0.0)
            return {name: torch.maximum(values, columns[name].amin(1)) for name, values in zip(("rgb", "xyz"), pair, strict=True)}
        return {name: values.amin(1) for name, values in columns.items()}

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        return [
            self._predict_one(sample, found, *self._match(found)) for sample, found in zip(samples, self._describe(samples), strict=True)
        ]

    def describe_normals(self) -> dict[str, Tensor]:
        self._require_fit()
        found = {}
        for name, part in self._parts.items():
            found[f"{name}_score"] = torch.tensor(part.normal_scores())
            found |= {f"{name}_{what}": values for what, values in part.measure_normals().items()}
        return found

    def graphs(self, size: tuple[int, int]) -> list[Graph]:
        self._require_fit()
        made = [graph for part in self._parts.values() if (graph := part.branch.graph(size)) is not None]
        if not made:
            raise ConfigError("this duet model has no network to export: its points are described by FPFH; fit one with modalities=rgb,xyz")
        return made

    def explain(self, sample: Sample) -> Explanation:
        self._require_fit()
        found = self._describe([sample])[0]
        matches, patch = self._match(found)
        after = self._score(matches, patch, for_map=True)
        evidence = {name: self._parts[name].collect(sample, found[name][1], matches[name], after[name]) for name in found}
        maps = {}
        if patch is not None:
            maps = {name: self._parts[name].to_map(one.before, one.patches, sample) for name, one in evidence.items()}
        return Explanation(sample, self._predict_one(sample, found, matches, patch), evidence, maps)

    def _describe(self, samples: Sequence[Sample]) -> list[Found]:
        """Return each sample's patches, with their features on the scale of the bank."""
        found: list[Found] = [{} for _ in samples]
        for name, part in self._parts.items():
            holders = [number for number, sample in enumerate(samples) if name in sample.modalities]
            for number, patches in zip(holders, part.branch.describe([samples[number] for number in holders]), strict=True):
                found[number][name] = part.bank.normalise(patches.features), patches
        for sample, parts in zip(samples, found, strict=True):
            if not parts:
                raise DataError(
                    f"sample {sample.meta.id!r} has {' and '.join(sample.modalities)}, the model was fitted on "
                    f"{' and '.join(self._parts)}; give one of these, or fit again"
                )
        return found

    def _match(self, found: Found) -> tuple[dict[str, Match], Tensor | None]:
        """Match the patches of each modality with normal ones, and align the modalities where enhancement asks for it."""
        matches = {name: self._parts[name].match(rows, patches.place, rows.mean(0)) for name, (rows, patches) in found.items()}
        return matches, self._align({name: patches.place for name, (_, patches) in found.items()})

    def _predict_one(self, sample: Sample, found: Found, matches: dict[str, Match], patch: Tensor | None) -> Prediction:
        values, heat_values = self._score(matches, patch), self._score(matches, patch, for_map=True)
        parts: dict[str, Tensor] = {}
        strange: list[tuple[float, Tensor]] = []
        for name, (rows, patches) in found.items():
            part, descriptor = self._parts[name], rows.mean(0)
            score = part.image_score(top_fraction_score(values[name][None], self.config.top), descriptor)
            measured = part.measure(descriptor, sample)
            strange.append(find_strangest(measured, part.measure_normals(), KINDS))
            parts |= {f"{name}_{what}": torch.tensor(value) for what, value in {"score": score, **measured}.items()}
            sigma = self.config.smooth * (sample.size[0] * sample.size[1]) ** 0.5 / 224
            heat = part.to_map(heat_values[name], patches, sample)
            known = sample.valid if name == "xyz" else None
            parts[f"{name}_map"] = smooth_map(heat, sigma, known) if self.config.smooth and sample.meta.organised else heat
        score = float(combine([parts[f"{name}_score"] for name in found], self.config.fusion))
        threshold = self._thresholds[",".join(found)]
        chance, is_outside = judge_outside([one for one, _ in strange], [held for _, held in strange], self.config.outside_rate)
        return Prediction(
            score=score,
            map=combine([parts[f"{name}_map"] for name in found], self.config.fusion),
            parts=parts,
            threshold=threshold,
            is_anomaly=score > threshold,
            calibrated=self._calibrated,
            meta=sample.meta,
            # Turned copies of one sample say nothing of how parts differ.
            is_outside=is_outside if self._calibrated else None,
            outside_p_value=chance if self._calibrated else None,
        )

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {"thresholds": self._thresholds, "calibrated": self._calibrated, "parts": {}}
        for name, part in self._parts.items():
            own, values["parts"][name] = part.state()
            tensors |= own
        return tensors, values

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._parts = {name: Modality(name, self.config) for name in MODALITIES if name in values["parts"]}
        for name, part in self._parts.items():
            part.restore(tensors, values["parts"][name])
        self._thresholds = {str(names): float(value) for names, value in values["thresholds"].items()}
        self._calibrated = bool(values["calibrated"])
