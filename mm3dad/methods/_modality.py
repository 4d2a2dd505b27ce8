"""One modality of `duet`: its branch, its bank and the scale its normal samples set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mm3dad.errors import ModelError
from mm3dad.features.branches import Patches, PointBranch, RGBBranch, patch_grid
from mm3dad.features.cache import CachedBranch
from mm3dad.features.condition import NAMES, describe_condition
from mm3dad.fusion.rescore import judge_against_neighbors
from mm3dad.memory import Bank
from mm3dad.memory.budget import work_of_row
from mm3dad.memory.conditions import Conditions
from mm3dad.methods._detector import Progress
from mm3dad.methods.explanation import Evidence
from mm3dad.ops.processor import return_memory
from mm3dad.scoring.calibrate import Calibration, fold_indices
from mm3dad.scoring.heldout import judge_rows, lift
from mm3dad.types import Sample

if TYPE_CHECKING:
    from mm3dad.methods.duet import Config

Match = tuple[Tensor, Tensor]


class Modality:
    """RGB or points: features, memory and the judgement of distances.

    Args:
        name: "rgb" or "xyz".
        config: duet's settings.
    """

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.config = name, config
        self.bank = Bank()
        self.conditions = Conditions()
        self.unit = self.map_unit = Calibration(0.0, 1.0)
        self.image_scores = torch.empty(0)
        self._branch: RGBBranch | PointBranch | CachedBranch | None = None

    @property
    def branch(self) -> RGBBranch | PointBranch | CachedBranch:
        """The feature extractor, made when it is first needed."""
        c = self.config
        if self._branch is None:
            made: RGBBranch | PointBranch
            kept: tuple[object, ...]
            if self.name == "rgb":
                image = c.backbone, c.layers, c.weights, c.image_size, c.aggregate
                made, kept = RGBBranch(*image, c.device, c.seed), image
            else:
                cloud = c.points, c.point_weights, c.image_size, c.centers, c.group_size, c.max_points, c.grouping, c.aggregate_points
                made, kept = PointBranch(*cloud), cloud
            # The seed matters to random weights alone, and those name it in their description.
            settings = {"branch": self.name, "settings": kept}
            self._branch = CachedBranch(made, c.feature_cache, settings) if c.feature_cache else made
        return self._branch

    def open_bank(self, samples: int, share: int, banks: int) -> None:
        """Start an empty bank for `samples` samples within `share` bytes, one of `banks`."""
        self.bank = Bank(self.branch.blocks, share, samples, work_of_row(self.config.neighbors, banks))

    def reopen(self, samples: int, keep: Sequence[int] | None) -> Modality:
        """Return a modality that knows the same samples (or those numbered in `keep`) and takes `samples` more; this one stays as it is."""
        grown = Modality(self.name, self.config)
        grown._branch, grown.bank = self.branch, self.bank.reopen(samples, keep)
        grown.conditions = self.conditions.reopen(keep)
        return grown

    def learn(self, sample: Sample) -> None:
        """Take in one normal sample."""
        patches = self.branch.describe([sample])[0]
        if len(self.conditions.rows) == len(self.bank.ids):  # a model from before goes on without
            self.conditions.add(describe_condition(sample, self.name))
        self.bank.add(sample.meta.id, patches.features, patches.place)

    def match(
        self, rows: Tensor, place: Tensor, descriptor: Tensor, allowed: Sequence[int] | None = None, coreset: Tensor | None = None
    ) -> Match:
        """Match (P, C) normalised patches with K normal patches each: distances and row numbers (P, K).

        They come from the K most similar normal samples. Where the global bank is off, or the sample is unlike every normal one
        (farther from all descriptors than any held-out normal sample was), they come from the coreset of the whole bank.
        """
        c = self.config
        if c.global_bank:
            similar, gaps = self.bank.similar_samples(descriptor, c.neighbors, allowed)
            if allowed is not None or float(gaps[0]) <= self.bank.reach:
                return self.bank.match_samples(rows, similar.tolist(), place, c.window)
        return self.bank.match_coreset(rows, c.neighbors, coreset, c.search)

    def judge(self, match: Match, for_map: bool = False) -> Tensor:
        """Put matched distances (P, K) on the modality's scale.

        A map has a scale of its own, without the rows' held-out scores: where the camera drifts after fitting, plain regions, whose
        held-out scores are tiny, would fill it (docs/duet.md). An image score looks at the highest patches only and gains from them.
        """
        distances, rows = match
        if for_map:
            return (distances - self.map_unit.location) / self.map_unit.scale
        values = judge_rows(distances, self.bank.held[rows], self.config.local_scale)
        return (values - self.unit.location) / self.unit.scale

    def hold_out(self, folds: Sequence[Sequence[int]], report: Progress) -> list[Match]:
        """Match every normal sample with a bank without its fold, note its rows' held-out scores and set the scale."""
        bank, matches = self.bank, {}
        for number, fold in enumerate(folds):
            report(f"held-out scores, {self.name}", number, len(folds))
            allowed = sorted(set(range(len(bank.ids))) - set(fold))
            coreset = None if self.config.global_bank else bank.choose_coreset(allowed, self.config.coreset, self.config.seed)
            for i in fold:
                distances, rows = self.match(bank.rows_of(i), bank.places_of(i), bank.descriptors[i], allowed, coreset)
                matches[i] = distances, rows.int()  # all of them lie in memory until the last is judged
                bank.held[bank.span(i)] = distances.amin(1)
            return_memory()
        bank.measure_gaps(folds)
        self.conditions.measure_gaps(folds)
        self.unit = self.map_unit = Calibration(0.0, 1.0)
        ordered = [matches[i] for i in range(len(bank.ids))]
        if self.config.scale:
            self.unit, self.map_unit = (
                Calibration.fit(torch.cat([self.judge(match, for_map).amin(1) for match in ordered])) for for_map in (False, True)
            )
        return ordered

    def image_score(self, score: float, descriptor: Tensor, exclude: int | None = None) -> float:
        """Judge an image score against the held-out scores of the normal samples most like this one (or of all)."""
        others = [i for i in range(len(self.bank.ids)) if i != exclude] or [0]
        if self.config.rescore:
            similar, _ = self.bank.similar_samples(descriptor, self.config.neighbors, others)
        else:
            similar = torch.tensor(others)
        return judge_against_neighbors(score, self.image_scores[similar], float(self.image_scores.std(correction=0)))

    def normal_scores(self) -> list[float]:
        """Return the image scores of the held-out normal samples, each judged against the others."""
        return [self.image_score(score, self.bank.descriptors[i], exclude=i) for i, score in enumerate(self.image_scores.tolist())]

    def measure(self, descriptor: Tensor, sample: Sample) -> dict[str, float]:
        """Return how far a descriptor (C,) and the condition of its sample are from the most similar normal sample's, and the condition."""
        found = {"gap": float(self.bank.similar_samples(descriptor, 1)[1][0])}
        if self.conditions.is_known:
            condition = describe_condition(sample, self.name)
            found |= {"condition": self.conditions.gap(condition), **dict(zip(NAMES[self.name], condition.tolist(), strict=True))}
        return found

    def measure_normals(self) -> dict[str, Tensor]:
        """Return the same of the normal samples, each (samples,): the distances when they are held out."""
        found = {"gap": self.bank.gaps}
        if self.conditions.is_known:
            found |= {"condition": self.conditions.gaps, **dict(zip(NAMES[self.name], self.conditions.rows.T, strict=True))}
        return found

    def to_map(self, scores: Tensor, patches: Patches, sample: Any) -> Tensor:
        """Carry patch scores to pixels, positive and in their order."""
        return self.branch.to_map(lift(scores), patches, sample)

    def collect(self, sample: Any, patches: Patches, match: Match, after: Tensor) -> Evidence:
        """Return what an explanation needs; `after` are the patch scores (P,) of the map."""
        branch = self.branch.branch if isinstance(self.branch, CachedBranch) else self.branch
        groups = branch.group_sample(sample) if isinstance(branch, PointBranch) else None
        cells = patch_grid(sample.size, self.config.image_size) if sample.size[0] > 1 else (1, len(after))
        return Evidence(patches, *match, self.judge(match, for_map=True).amin(1), after, self.bank, cells, groups)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and plain values for a model folder."""
        tensors, values = self.bank.state(f"{self.name}.")
        tensors[f"{self.name}.image_scores"] = self.image_scores
        if self.conditions.is_known:
            tensors[f"{self.name}.conditions"] = self.conditions.rows
        return tensors, {"bank": values, "unit": self.unit.to_dict(), "map_unit": self.map_unit.to_dict()}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.bank = Bank.from_state(f"{self.name}.", tensors, values["bank"])
        self.conditions = Conditions(tensors.get(f"{self.name}.conditions"))
        if self.conditions.is_known and self.conditions.rows.shape != (len(self.bank.ids), len(NAMES[self.name])):
            raise ModelError(f"{self.name}.conditions does not fit the bank; the model is damaged, fit and save it again")
        folds = [fold.tolist() for fold in fold_indices(len(self.bank.ids), self.config.folds)]
        self.conditions.measure_gaps(folds)
        if not len(self.bank.gaps):
            self.bank.measure_gaps(folds)
        self.image_scores = tensors[f"{self.name}.image_scores"]
        self.unit, self.map_unit = Calibration.from_dict(values["unit"]), Calibration.from_dict(values["map_unit"])
