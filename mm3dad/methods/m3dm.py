"""m3dm: a bank of point patches and a bank of image patches, joined by a decision layer; a third bank of fused features as an option.

M3DM, "Multimodal Industrial Anomaly Detection via Hybrid Fusion" (CVPR 2023, arXiv 2303.00601; multimodal sheet, part 4). Differs from its
code: a bank is normalised by its own mean and spread, all banks keep the same share of their rows, scores enter the decision layer in units
of what held-out normal samples score, and the fusion network learns from patches of the same place; `reference=True` restores the published
constants, row counts, divisor, weights and 8-bit blur. Weights: embedded Apache-2.0; the paper's DINO ViT-B/8 Apache-2.0, Point-MAE not
stated by its authors; those of the fusion network are learned from the training samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm3dad.errors import ConfigError
from mm3dad.features.align import resize_map
from mm3dad.features.patchmaps import Join, join_finest
from mm3dad.fusion.decision import fit_one_class
from mm3dad.memory.coreset import projection_size
from mm3dad.memory.flat import FlatBank
from mm3dad.methods._config import MODALITIES, check_ranges, option
from mm3dad.methods._detector import Needs, Progress, strip_prefix
from mm3dad.methods._retrieval import Grid, RetrievalConfig, RetrievalDetector
from mm3dad.nets.fusion_head import FeatureFusion, fusion_task
from mm3dad.nets.training import TrainingSettings, train
from mm3dad.scoring.nearest import bank_statistics, reweight_score, shared_normalisation

PUBLISHED_WEIGHTS = {"xyz": 1.0, "rgb": 0.1, "fusion": 1.0}
PUBLISHED_DIVISOR = 1000.0
MOST_PIXELS = 200_000  # of held-out maps, that the decision layer of the map sees
BATCH = 1024  # pairs of patches in a training step of the fusion network


@dataclass(frozen=True)
class Config(RetrievalConfig):
    """Settings of `m3dm`."""

    fineness: int = option(1, "cells of the point grid a side for one of a stride-8 image grid; published: 2 (56 x 56)")
    fusion: bool = option(False, "train the fusion network on the training samples and keep a third bank of its features")
    fusion_steps: int = option(300, "gradient steps of the fusion network")
    share: float = option(0.5, "share of normal scores the decision layer lets fall behind its margin (nu)")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, (("fineness", 1, 8), ("fusion_steps", 1, 10**6), ("share", 1e-3, 1.0)))
        if self.fusion and len(self.modalities) == 1:
            raise ConfigError(f"fusion needs both modalities, got modalities={self.modalities[0]}; leave modalities out or fusion off")


class M3DM(RetrievalDetector):
    """Two banks (three with fusion) and a decision layer."""

    name = "m3dm"
    Config = Config
    needs = Needs(inputs=MODALITIES, settings=("one-class", "few-shot", "multi-class"), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._net: FeatureFusion | None = None
        self._decision = torch.ones(2, 1)  # weight of each bank, for image scores and for maps

    @property
    def _fineness(self) -> int:
        return int(self.config.fineness)

    @property
    def _join(self) -> Join:
        return join_finest

    def _remember(self, full: dict[str, FlatBank], report: Progress) -> dict[str, FlatBank]:
        for bank in full.values():
            bank.seal()
        self._normalise(full)
        self._net = None
        if self.config.fusion:
            if len(full) < 2:
                raise ConfigError("fusion needs both modalities in the training samples, got one; turn fusion off")
            self._net = self._train(full, report)
        banks: dict[str, FlatBank] = {}
        count = None
        for name in ("xyz", "rgb", "fusion"):
            report("coreset", len(banks), 3)
            if name == "fusion" and self._net is not None:
                bank = self._fuse_all(full)
            elif name in full:
                bank = full[name]
            else:
                continue
            banks[name] = bank.thin(self._choose_rows(bank, projection_size(len(bank.rows)), count and min(count, len(bank.rows))))
            if self.config.reference and name == "xyz":
                # The published code takes the share of the rows that are left of the point bank.
                count = max(1, int(self.config.coreset * len(banks[name].rows)))
        return banks

    def _normalise(self, full: dict[str, FlatBank]) -> None:
        """Subtract one number from each bank and divide by another."""
        constants = {name: bank_statistics(name, bank.rows) for name, bank in full.items()}
        if self.config.reference and len(full) == 2:
            values = shared_normalisation(full["xyz"].rows, full["rgb"].rows)
            constants = {"xyz": values[:2], "rgb": values[2:]}
        elif self.config.reference and "xyz" in full:
            constants = {"xyz": (0.0, 1.0)}
        for name, (mean, deviation) in constants.items():
            width = full[name].rows.shape[1]
            full[name].rescale(torch.full((width,), mean), torch.full((width,), 1 / deviation))

    def _pairs(self, rows: dict[str, Tensor], grids: dict[str, Grid]) -> tuple[Tensor, Tensor]:
        """Return the point patches and, for each, the image patch of the same place."""
        image = rows["rgb"].T.reshape(-1, *grids["rgb"])
        return rows["xyz"], resize_map(image, grids["xyz"]).flatten(1).T

    def _train(self, full: dict[str, FlatBank], report: Progress) -> FeatureFusion:
        """Train the fusion network on aligned patches that hold points."""
        found = []
        for i, grids in enumerate(self._grids):
            xyz, rgb = self._pairs({name: bank.part(i) for name, bank in full.items()}, grids)
            # A cell without points is the same number in each channel, whatever the normalisation.
            held = xyz.amax(1) > xyz.amin(1)
            found.append((xyz[held].half(), rgb[held].half()))
        xyz, rgb = (torch.cat(part) for part in zip(*found, strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            net = FeatureFusion(xyz.shape[1], rgb.shape[1])

        def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            chosen = torch.randperm(len(xyz), generator=generator)[:BATCH]
            return xyz[chosen].float(), rgb[chosen].float()

        task = fusion_task(net, draw, self.config.fusion_steps)
        train(task, TrainingSettings(self.config.seed), self.training, report, "fusion network")
        return net

    @torch.no_grad()
    def _fuse(self, rows: dict[str, Tensor], grids: dict[str, Grid]) -> Tensor:
        assert self._net is not None
        return self._net(*self._pairs(rows, grids))

    def _fuse_all(self, full: dict[str, FlatBank]) -> FlatBank:
        bank = self._open_bank()
        for i, grids in enumerate(self._grids):
            bank.add(f"training sample {i}", self._fuse({name: part.part(i) for name, part in full.items()}, grids))
        bank.seal()
        mean, deviation = bank_statistics("fusion", bank.rows)
        width = bank.rows.shape[1]
        bank.rescale(torch.full((width,), mean), torch.full((width,), 1 / deviation))
        return bank

    def _extend(self, rows: dict[str, Tensor], grids: dict[str, Grid]) -> tuple[dict[str, Tensor], dict[str, Grid]]:
        ordered: dict[str, Tensor] = {name: rows[name] for name in ("xyz", "rgb") if name in rows}
        if self._net is None:
            return ordered, grids
        fused = self._banks["fusion"].normalise(self._fuse(rows, grids))
        return ordered | {"fusion": fused}, grids | {"fusion": grids["xyz"]}

    def _image_score(self, name: str, rows: Tensor, distance: Tensor, index: Tensor, bank: FlatBank) -> float:
        is_published = self.config.reference
        divisor = PUBLISHED_DIVISOR if is_published and len(self._modalities) == 2 else 1.0
        epsilon = 1e-5 if is_published and self._modalities == ("rgb",) else 0.0
        return reweight_score(rows, distance, index, bank.rows.float(), self.config.neighbors, divisor, epsilon)

    def _calibrate(self, judged: list[tuple[dict[str, float], dict[str, Tensor]]]) -> None:
        """Fit the decision layers of image scores and of map pixels on held-out normal samples."""
        names = list(self._banks)
        scale = torch.tensor([PUBLISHED_WEIGHTS[name] for name in names]) if self.config.reference else None
        if not judged:
            # Without held-out samples, a distance counts by the number of channels it is made of.
            width = torch.tensor([float(self._banks[name].rows.shape[1]) for name in names])
            self._decision = (width**-0.5 if scale is None else scale).repeat(2, 1)
            return
        image = torch.tensor([[scores[name] for name in names] for scores, _ in judged])
        step = -(-sum(next(iter(maps.values())).numel() for _, maps in judged) // MOST_PIXELS)
        pixel = torch.cat([torch.stack([maps[name].flatten()[::step] for name in names], dim=1) for _, maps in judged])
        rows = []
        for vectors in (image, pixel):
            unit = scale if scale is not None else 1 / vectors.mean(0).clamp_min(torch.finfo(vectors.dtype).tiny)
            rows.append(fit_one_class(vectors * unit, self.config.share).float() * unit)
        self._decision = torch.stack(rows)

    def _combine(self, scores: dict[str, float], maps: dict[str, Tensor]) -> tuple[float, Tensor]:
        if len(scores) == 1:
            return super()._combine(scores, maps)
        image, pixel = self._decision
        score = sum(float(weight) * scores[name] for weight, name in zip(image, self._banks, strict=True))
        return score, sum(weight * maps[name] for weight, name in zip(pixel, self._banks, strict=True))

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super()._state()
        net = {} if self._net is None else {f"net.{key}": value for key, value in self._net.state_dict().items()}
        return tensors | {"decision": self._decision} | net, values

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super()._restore(tensors, values)
        self._decision = tensors["decision"]
        self._net = None
        if "fusion" in self._banks:
            self._net = FeatureFusion(self._banks["xyz"].rows.shape[1], self._banks["rgb"].rows.shape[1])
            self._net.load_state_dict(strip_prefix(tensors, "net."))
            self._net.eval()
