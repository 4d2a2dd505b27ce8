"""How g2sf's metric is learned: pairs of patches and bank rows, their noise, the losses together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import DataError
from mm3dad.fusion.metric import (
    consistency_loss,
    encode_direction,
    fuse_distances,
    margin_loss,
    mismatch_loss,
    scale_loss,
    separation_loss,
)
from mm3dad.methods._detector import Progress
from mm3dad.metrics import average_precision
from mm3dad.nets.scale_net import ScaleNet
from mm3dad.nets.training import Task, TrainingRun, TrainingSettings, train

STEPS = 20  # in an epoch
# Weights of the losses; trained sheet, 2.4.
MARGIN, CONSISTENCY, MISMATCH, SCALE, PENALTY = 10.0, 40.0, 20.0, 3.0, 5e-4
DECAY = 1e-4
BALANCE_RATE = 5e-3  # of the two global weights
NOISE = 0.1  # most, in units of the ordinary distance
Labelled = tuple["Pairs", Tensor]


@dataclass(frozen=True)
class Pairs:
    """Patches and the bank rows they are nearest to, paired by rank.

    Args:
        features: (B, C) floating, image and point features side by side.
        prototypes: (B, J, C) floating, the j-th nearest row of either bank side by side.
        split: channels of the image.
        units: (2,) ordinary distance of a normal patch, per modality.
    """

    features: Tensor
    prototypes: Tensor
    split: int
    units: Tensor

    @classmethod
    def join(cls, parts: Sequence[Pairs]) -> Pairs:
        """Put pairs of one form one after another; of ranks those that all have."""
        ranks = min(part.prototypes.shape[1] for part in parts)
        prototypes = torch.cat([part.prototypes[:, :ranks] for part in parts])
        return cls(torch.cat([part.features for part in parts]), prototypes, parts[0].split, parts[0].units)

    def pick(self, chosen: Tensor, device: str) -> Pairs:
        """Return the chosen pairs on a device."""
        features, prototypes = (part[chosen].to(device) for part in (self.features, self.prototypes))
        return Pairs(features, prototypes, self.split, self.units.to(device))

    @property
    def distances(self) -> Tensor:
        """Plain distances (B, J, 2) of image and cloud, in units of the ordinary."""
        away = self.features[:, None] - self.prototypes
        return torch.stack([away[..., : self.split].norm(dim=2), away[..., self.split :].norm(dim=2)], dim=2) / self.units


def train_metric(
    net: ScaleNet,
    learned: Labelled,
    judged: Labelled | None,
    epochs: int,
    batch: int,
    rate: float,
    reference: bool,
    settings: TrainingSettings,
    run: TrainingRun,
    report: Progress,
) -> None:
    """Train the scales in place; with judged pairs the epoch that ranks defects best among them is kept, and it may be the untrained one.

    Args:
        learned, judged: pairs, and which of them are normal (B,) bool.
        reference: with the published broadcast in the consistency loss, and the epoch of the least separation and margin loss.

    Raises:
        DataError: no normal patch, or none of a defect.
        TrainingError: the training diverged.
    """
    pairs, is_normal = learned
    kinds = [kind.nonzero()[:, 0] for kind in (is_normal, ~is_normal)]
    if not all(len(kind) for kind in kinds):
        raise DataError(
            f"g2sf learns from normal and from defective patches, got {len(kinds[0])} and {len(kinds[1])}; raise defects or image_size"
        )
    size = max(2, min(batch, round(0.7 * len(is_normal) / STEPS)))
    # A defect counts as far when D passes twice the largest plain distance a pasted one has.
    bound = 2 * float(pairs.distances[~is_normal, 0].amax())

    def batches(epoch: int, generator: torch.Generator) -> list[Tensor]:
        draws = [kind[torch.randint(len(kind), (STEPS, (size + 1) // 2), generator=generator)] for kind in kinds]
        return list(torch.cat(draws, dim=1))

    def loss(chosen: Tensor) -> dict[str, Tensor]:
        chosen = chosen.cpu()
        return metric_losses(net, pairs.pick(chosen, settings.device), is_normal[chosen].to(settings.device), bound, reference)

    def validate() -> float:
        assert judged is not None
        found = judged[0].pick(torch.arange(len(judged[1])), settings.device)
        fused = judge_pairs(net, found.features, found.prototypes[:, 0], found)[0]
        normal = judged[1].to(settings.device)
        if not reference:
            return 1 - average_precision(fused, ~normal)
        return float(separation_loss(fused, normal, bound, weighted=False) + MARGIN * margin_loss(fused, normal))

    task = Task(
        "metric",
        {"patches": len(is_normal), "rate": rate, "batch": batch, "reference": reference},
        {"net": net},
        lambda: torch.optim.Adam(
            [
                {"params": [p for name, p in net.named_parameters() if name != "balance"], "lr": rate},
                {"params": [net.balance], "lr": BALANCE_RATE},
            ],
            weight_decay=DECAY,
        ),
        epochs,
        batches,
        loss,
        validate if judged is not None else None,
    )
    train(task, settings, run, report)


def judge_pairs(net: ScaleNet, features: Tensor, prototypes: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Return fused distance (B,), local scales (B, 2) and plain distances (B, 2) of rows (B, C) that may differ from the pairs' own."""
    plain = Pairs(features, prototypes[:, None], pairs.split, pairs.units).distances[:, 0]
    scales = net(encode_direction(features, prototypes), prototypes)
    return fuse_distances(plain, scales, net.shares), scales, plain


def metric_losses(net: ScaleNet, pairs: Pairs, is_normal: Tensor, bound: float, reference: bool) -> dict[str, Tensor]:
    """Return the weighted losses of a batch by name."""
    features, nearest = _disturb(pairs.features, pairs), _disturb(pairs.prototypes[:, 0], pairs)
    fused, scales, plain = judge_pairs(net, features, nearest, pairs)
    terms = {
        "separation": separation_loss(fused, is_normal, bound),
        "margin": MARGIN * margin_loss(fused, is_normal),
        "scale": SCALE * scale_loss(scales, is_normal),
        "mismatch": MISMATCH * mismatch_loss(net(*_mismatch(features, nearest, pairs.split))),
        "penalty": PENALTY * net.penalty(),
    }
    ranks = (pairs.prototypes.shape[1] - 1) // 2 * 2 + 1
    if ranks >= 3:
        others = [judge_pairs(net, features, pairs.prototypes[:, rank], pairs) for rank in range(1, ranks)]
        all_fused = torch.stack([fused, *(one[0] for one in others)], dim=1)
        all_plain = torch.stack([plain, *(one[2] for one in others)], dim=1)
        terms["consistency"] = CONSISTENCY * consistency_loss(all_fused, all_plain, reference=reference)
    return terms


def _disturb(rows: Tensor, pairs: Pairs) -> Tensor:
    """Move rows (B, C) by up to a tenth of the ordinary distance, in a random direction without negative parts, as published."""
    moved = []
    for part, unit in zip((rows[:, : pairs.split], rows[:, pairs.split :]), pairs.units, strict=True):
        step = NOISE * unit * torch.rand(len(part), 1, device=part.device)
        moved.append(part + step * F.normalize(torch.rand_like(part), dim=1))
    return torch.cat(moved, dim=1)


def _mismatch(features: Tensor, prototypes: Tensor, split: int) -> tuple[Tensor, Tensor]:
    """Break the tie of image and cloud: of features in one half of the batch, of prototypes in the other."""
    half = len(features) // 2
    first, second = _shuffle(features[:half], split), _shuffle(prototypes[half:], split)
    features, prototypes = torch.cat([first, features[half:]]), torch.cat([prototypes[:half], second])
    return encode_direction(features, prototypes), prototypes


def _shuffle(rows: Tensor, split: int) -> Tensor:
    """Permute image and point channels of rows (B, C) independently."""
    orders = [torch.randperm(len(rows), device=rows.device) for _ in range(2)]
    return torch.cat([rows[orders[0], :split], rows[orders[1], split:]], dim=1)
