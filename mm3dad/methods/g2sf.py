"""g2sf: one distance of image and cloud, stretched along the directions in which drawn defects leave the normal patches.

G2SF, "Geometry-Guided Score Fusion" (ICCV 2025, arXiv 2503.10091; trained sheet, part 2). Two banks of normal patches, and a small network
that turns the two distances to a pair of bank rows into one. Differs from its code: a training sample is never compared with its own rows,
which replaces the published turning and shifting of it; defects are drawn (`dual`), not pasted; both banks are centred and their layers
brought to one spread; the score is the maximum of the smoothed map, not of the cells; the consistency loss is a mean over patches, not over
all pairs of them (`reference=True` restores the last four). Weights: embedded Apache-2.0; the paper's DINO ViT-B/8 Apache-2.0, Point-MAE
not stated by its authors; those of the network are learned from the training samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError
from mm3dad.features.branches import Patches
from mm3dad.features.cache import CachedFeatures
from mm3dad.features.patchmaps import ImagePatches, Join
from mm3dad.features.pixelmap import fit_scale
from mm3dad.features.rgb import stack_layers
from mm3dad.fusion.metric import encode_direction, fuse_distances, pick_rank
from mm3dad.memory.coreset import projection_size
from mm3dad.memory.flat import FlatBank
from mm3dad.memory.labelled import mask_cells
from mm3dad.memory.search import nearest_rows
from mm3dad.methods._config import MODALITIES, check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress, strip_prefix
from mm3dad.methods._metric import Pairs, train_metric
from mm3dad.methods._retrieval import Grid, RetrievalConfig, RetrievalDetector
from mm3dad.nets.scale_net import ScaleNet
from mm3dad.nets.training import TrainingSettings, split_normals
from mm3dad.scoring.nearest import bank_statistics
from mm3dad.synthesis.synthesizers import CutPaste, DualModal
from mm3dad.types import Sample

Banks = dict[str, FlatBank]
SCALED_BY = 200_000  # most rows, evenly chosen, that a bank's scale is found on


@dataclass(frozen=True)
class Config(RetrievalConfig):
    """Settings of `g2sf`."""

    neighbors: int = option(6, "bank rows of each modality, paired by rank, the least fused distance of which is the score")
    fineness: int = option(1, "cells a side for one of a stride-8 image grid; published: 2 (56 x 56)")
    learned: bool = option(True, "train the scales; false leaves the plain mean of both distances, for an ablation")
    defects: int = option(80, "samples with drawn defects to learn from; published: 800")
    hidden: int = option(64, "width of the network's hidden layers; published: 512")
    epochs: int = option(60, "passes of 20 steps; published: 80")
    batch: int = option(256, "most patches in a step, half of them of defects; published: 8192")
    rate: float = option(2e-3, "learning rate of the network; published: 1.5e-4 for its far larger batches")
    held_out: float = option(0.2, "share of the normal samples whose defects choose the best epoch; published: 0.5, of the patches")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.modalities) == 1:
            raise ConfigError(f"g2sf fuses both modalities, got modalities={self.modalities[0]}; leave modalities out, or use patchcore")
        check_ranges(self, (
            ("fineness", 1, 8), ("defects", 1, 10**6), ("hidden", 1, 10**5), ("epochs", 1, 10**6), ("batch", 2, 10**6), ("rate", 1e-9, 1.0),
            ("held_out", 0.0, 0.9), ("neighbors", 2, 1000),
        ))  # fmt: skip


class G2SF(RetrievalDetector):
    """Two banks and a learned metric."""

    name = "g2sf"
    Config = Config
    needs = Needs(inputs=MODALITIES, settings=("one-class", "few-shot", "multi-class"), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._samples: Sequence[Sample] = ()  # while fitting
        self._net: ScaleNet | None = None
        self._units = torch.ones(2)  # ordinary distance of a normal patch, per modality

    @property
    def _fineness(self) -> int:
        return int(self.config.fineness)

    def _join_settings(self) -> object:
        return self._fineness

    @property
    def _join(self) -> Join:
        return lambda layers, cells: stack_layers(layers, (cells[0] * self._fineness, cells[1] * self._fineness))

    def _describe(self, sample: Sample) -> dict[str, Patches]:
        for name in MODALITIES:
            if name not in sample.modalities:
                raise DataError(f"sample {sample.meta.id!r} has no {name}, and g2sf fuses both modalities; complete it, or use duet")
        return super()._describe(sample)

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Detector:
        self._samples = samples
        try:
            return super().fit(samples, progress, validation)
        finally:
            self._samples = ()

    def _remember(self, full: Banks, report: Progress) -> Banks:
        banks: Banks = {}
        for name in MODALITIES:
            report("coreset", len(banks), 2)
            bank = full[name]
            bank.seal()
            self._normalise(name, bank)
            banks[name] = bank.thin(self._choose_rows(bank, projection_size(len(bank.rows))))
        self._banks, self._net = banks, None
        self._units = self._measure_units(full)
        if self.config.learned:
            self._learn(full, report)
        return banks

    def _normalise(self, name: str, bank: FlatBank) -> None:
        """Centre the channels and bring each layer to one spread; as published, one number of the image alone does both."""
        if not self.config.reference:
            rows = bank.rows[:: -(-len(bank.rows) // SCALED_BY)].float()
            shift, factor = fit_scale([rows], [(width, 1.0) for width in self._block_widths(name, bank)])
            # One number for a cloud, by which `_hold_points` knows a cell without a point; distances do not see it.
            bank.rescale(shift if name == "rgb" else shift.mean().expand_as(shift).clone(), factor)
        elif name == "rgb":
            mean, deviation = bank_statistics(name, bank.rows)
            width = bank.rows.shape[1]
            bank.rescale(torch.full((width,), mean), torch.full((width,), 1 / deviation))

    def _block_widths(self, name: str, bank: FlatBank) -> Sequence[int]:
        """Return the channels of each layer of the backbone; a cloud has one block."""
        if name == "xyz":
            return (bank.rows.shape[1],)
        made = self._extractor(name)
        source = made.source if isinstance(made, CachedFeatures) else made
        assert isinstance(source, ImagePatches)
        return source.extractor.widths

    def _measure_units(self, full: Banks) -> Tensor:
        """Return the mean distance of normal patches to the nearest row of other samples, per modality."""
        sums, count = torch.zeros(2), 0
        for i in range(len(self._grids)):
            rows = {name: full[name].part(i) for name in MODALITIES}
            held = _hold_points(rows["xyz"])
            distances = self._match({name: part[held] for name, part in rows.items()}, i)[0][:, 0]
            sums, count = sums + distances.sum(0), count + len(distances)
        return (sums / max(1, count)).clamp_min(1e-6)

    def _match(self, rows: dict[str, Tensor], without: int | None) -> tuple[Tensor, Tensor, Banks]:
        """Find the nearest rows: distances and row numbers (P, J, 2), and the banks they are of."""
        banks = self._banks if without is None else {name: bank.without(without) for name, bank in self._banks.items()}
        ranks = min(2 * self.config.neighbors - 1, *(len(bank.rows) for bank in banks.values()))
        found = [nearest_rows(rows[name], banks[name].rows.float(), ranks) for name in MODALITIES]
        return torch.stack([one[0] for one in found], dim=2), torch.stack([one[1] for one in found], dim=2), banks

    def _pair(self, rows: dict[str, Tensor], without: int | None) -> Pairs:
        """Put patches beside the bank rows they are nearest to."""
        _, index, banks = self._match(rows, without)
        prototypes = torch.cat([banks[name].rows.float()[index[:, :, number]] for number, name in enumerate(MODALITIES)], dim=2)
        return Pairs(torch.cat([rows[name] for name in MODALITIES], dim=1), prototypes, rows["rgb"].shape[1], self._units)

    def _learn(self, full: Banks, report: Progress) -> None:
        c = self.config
        learned, judged = split_normals(len(self._samples), c.held_out, c.seed)
        generator = torch.Generator().manual_seed(c.seed)
        parts = []
        for number, pool in ((c.defects, learned), (max(1, c.defects // 4) if judged else 0, judged)):
            pairs, normal = [], []
            for done in range(number):
                report("drawing defects", done, number)
                for found, is_normal in self._spoil(full, pool[done % len(pool)], pool, generator):
                    pairs.append(found)
                    normal.append(is_normal)
            parts.append((Pairs.join(pairs), torch.cat(normal)) if pairs else None)
        assert parts[0] is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(c.seed)
            self._net = ScaleNet(parts[0][0].features.shape[1], c.hidden, max(1, c.hidden // 4), max(1, c.hidden // 2))
        settings = TrainingSettings(c.seed, device=c.device)
        train_metric(self._net, parts[0], parts[1], c.epochs, c.batch, c.rate, c.reference, settings, self.training, report)
        self._net.cpu()

    def _spoil(self, full: Banks, number: int, pool: Sequence[int], generator: torch.Generator) -> list[tuple[Pairs, Tensor]]:
        """Give a normal sample a defect: its patches that hold points, and which of them are normal (P,) bool.

        The patches of the defect come three times, seen by both modalities, by the image alone and by the cloud alone: a network that
        saw both together only would learn to trust the one in which drawing shows best. As published, they come once, of pasted pieces.
        """
        sample = self._samples[number]
        if self.config.reference:
            source = self._samples[pool[int(torch.randint(len(pool), (), generator=generator))]]
            made = CutPaste().make(sample, generator, source if source.size == sample.size else sample)
        else:
            made = DualModal().make(sample, generator)
        # Without files of its own the altered sample is not taken for the normal one by a cache of features.
        found = self._describe(replace(made, meta=replace(made.meta, paths={})))
        spoiled = {name: self._banks[name].normalise(found[name].features) for name in MODALITIES}
        clean = {name: full[name].part(number).float() for name in MODALITIES}
        assert made.mask is not None
        anomalous, normal = mask_cells(made.mask, found["xyz"].grid)
        parts = []
        for altered in [MODALITIES] if self.config.reference else [MODALITIES, *((name,) for name in MODALITIES)]:
            rows = {name: spoiled[name] if name in altered else clean[name] for name in MODALITIES}
            kept = _hold_points(rows["xyz"]) & (anomalous | normal if altered == MODALITIES else anomalous)
            if bool(kept.any()):  # a small piece may miss every cell that holds a point
                parts.append((self._pair({name: part[kept] for name, part in rows.items()}, number), normal[kept]))
        return parts

    @torch.no_grad()
    def _judge(
        self, features: dict[str, Tensor], grids: dict[str, Grid], canvas: Grid, without: int | None = None
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        pairs = self._pair(features, without)
        ranks = min(self.config.neighbors, pairs.prototypes.shape[1])
        plain = pairs.distances[:, :ranks]
        scales, shares = torch.ones_like(plain), torch.full((2,), 0.5)
        if self._net is not None:
            held = _hold_points(features["xyz"])
            # Where there is no point there is no direction: the plain distances stay.
            for rank in range(ranks):
                rows = pairs.features[held], pairs.prototypes[held, rank]
                scales[held, rank] = self._net(encode_direction(*rows), rows[1])
            shares = self._net.shares
        fused = pick_rank(fuse_distances(plain, scales, shares))
        values = {"fused": fused, "rgb": plain[:, 0, 0], "xyz": plain[:, 0, 1]}
        maps = {name: self._heat(value.view(grids["xyz"]), canvas) for name, value in values.items()}
        # Single cells of a good part stand out as high as a defect; a defect is wider. As published, cells count.
        judged = values if self.config.reference else maps
        return {name: float(value.max()) for name, value in judged.items()}, maps

    def _combine(self, scores: dict[str, float], maps: dict[str, Tensor]) -> tuple[float, Tensor]:
        return scores["fused"], maps["fused"]

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super()._state()
        net = {} if self._net is None else {f"net.{key}": value for key, value in self._net.state_dict().items()}
        return tensors | {"units": self._units} | net, values

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super()._restore(tensors, values)
        self._units, self._net = tensors["units"], None
        if self.config.learned:
            channels, hidden = sum(bank.rows.shape[1] for bank in self._banks.values()), self.config.hidden
            self._net = ScaleNet(channels, hidden, max(1, hidden // 4), max(1, hidden // 2)).eval()
            self._net.load_state_dict(strip_prefix(tensors, "net."))


def _hold_points(rows: Tensor) -> Tensor:
    """Say which cells (P, C) hold a point: one without is the same number in each channel, whatever the normalisation."""
    return rows.amax(1) > rows.amin(1)
