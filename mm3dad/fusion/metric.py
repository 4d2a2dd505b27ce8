"""One distance of two modalities, stretched along directions in which normal patches do not vary (G2SF), and its losses.

Source: G2SF (ICCV 2025, arXiv 2503.10091; trained sheet, part 2). Letters: B patches, J ranks of neighbours, two modalities.
Losses take the fused distance l and use D = l^2 where the published code does.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.fusion._check import check_values

EPSILON = 1e-5
LEAST_WEIGHT, MOST_WEIGHT = 0.33, 3.0
Rule = Literal["min", "max", "mean", "nearest"]


def encode_direction(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return 5 times the unit direction from prototypes to features, over the channels of both modalities together.

    Args:
        features, prototypes: (B, C) floating, on one scale.

    Returns:
        (B, C); a patch closer than 1e-3 to its prototype has a shorter direction, an equal one none.

    Raises:
        ShapeError: two shapes.
        DataError: NaN or infinite values.
    """
    check_values("features", features, "(B, C)")
    check_values("prototypes", prototypes, "(B, C)")
    if features.shape != prototypes.shape:
        raise ShapeError(f"features and prototypes must have one shape, got {tuple(features.shape)} and {tuple(prototypes.shape)}")
    away = features - prototypes
    return 5 * away / away.norm(dim=1, keepdim=True).clamp_min(1e-3)


def fuse_distances(distances: Tensor, scales: Tensor, shares: Tensor) -> Tensor:
    """Return l = sum over modalities of distance * local scale * global share.

    Args:
        distances: (..., 2) floating, each in units of an ordinary normal distance of its modality.
        scales: (..., 2) floating, above 0.
        shares: (2,) floating, together 1.

    Raises:
        ShapeError: shapes that do not fit.
    """
    if distances.shape != scales.shape or distances.shape[-1:] != shares.shape:
        raise ShapeError(
            f"distances and scales must be (..., 2) and shares (2,), got {tuple(distances.shape)}, {tuple(scales.shape)}, "
            f"{tuple(shares.shape)}"
        )
    return (distances * scales * shares).sum(-1)


def pick_rank(fused: Tensor, rule: Rule = "min") -> Tensor:
    """Make one score of the fused distances to the nearest, second nearest, ... prototypes.

    Args:
        fused: (B, J) floating.
        rule: "min" as published: the metric may prefer a prototype that is not the nearest; the others are for ablations.

    Raises:
        ShapeError: fused is not (B, J).
        DataError: NaN or infinite values.
        ConfigError: another rule.
    """
    check_values("fused", fused, "(B, J)")
    if rule == "min":
        return fused.amin(1)
    if rule == "max":
        return fused.amax(1)
    if rule == "mean":
        return fused.mean(1)
    if rule == "nearest":
        return fused[:, 0]
    raise ConfigError(f"rule must be min, max, mean or nearest, got {rule!r}")


def separation_loss(fused: Tensor, is_normal: Tensor, bound: float, weighted: bool = True) -> Tensor:
    """Pull normal patches to distance 0 and push anomalous ones beyond D = bound.

    Normal: w D with w = D^2; anomalous: w relu(1 / D - 1 / bound) with w = D^-2; both weights clamped to [0.33, 3] and not detached.

    Args:
        fused: (B,) floating, > 0.
        is_normal: (B,) bool.
        bound: above 0.
        weighted: False drops the weights, as for choosing the best epoch.

    Raises:
        ShapeError, DataError: fused and is_normal do not fit, or are not finite.
        ConfigError: a bound that is not above 0.
    """
    _check_labels(fused, is_normal)
    _check_bound(bound)
    square = fused.square()
    near, far = square, (1 / (square + EPSILON) - 1 / bound).relu()
    if weighted:
        near = near * square.square().clamp(LEAST_WEIGHT, MOST_WEIGHT)
        far = far * (square + EPSILON).pow(-2).clamp(LEAST_WEIGHT, MOST_WEIGHT)
    return torch.where(is_normal, near, far).mean()


def hinge_loss(fused: Tensor, is_normal: Tensor, bound: float) -> Tensor:
    """Pull normal patches to distance 0, by D, and push anomalous ones beyond D = bound, by relu(bound - D).

    The other separation of the published code, which its training does not use: here the push is as strong far from 0 as near it.

    Args:
        fused, is_normal, bound: as `separation_loss`.

    Raises:
        ShapeError, DataError, ConfigError: as `separation_loss`.
    """
    _check_labels(fused, is_normal)
    _check_bound(bound)
    square = fused.square()
    return torch.where(is_normal, square, (bound - square).relu()).mean()


def margin_loss(fused: Tensor, is_normal: Tensor, quantile: float = 1.0) -> Tensor:
    """Punish overlap: normal patches above the least anomalous one, anomalous ones below the greatest normal one, D over the latter.

    Args:
        fused, is_normal: as `separation_loss`; with one kind of patch alone there is no overlap and the loss is 0.
        quantile: of the normal patches that stands for the greatest; published: 1 in training, 0.995 beside `hinge_loss`.

    Raises:
        ShapeError, DataError: as `separation_loss`.
        ConfigError: a quantile outside (0, 1].
    """
    _check_labels(fused, is_normal)
    if not 0 < quantile <= 1:
        raise ConfigError(f"quantile must lie in (0, 1], got {quantile}")
    if bool(is_normal.all()) or not bool(is_normal.any()):
        return fused.sum() * 0
    square = fused.square()
    square = square / square[is_normal].quantile(quantile).clamp_min(EPSILON)
    normal, anomalous = square[is_normal], square[~is_normal]
    return ((normal - anomalous.amin()).relu().sum() + (normal.quantile(quantile) - anomalous).relu().sum()) / len(fused)


def scale_loss(scales: Tensor, is_normal: Tensor) -> Tensor:
    """Push local scales to their top e on anomalous patches, and below 1 on normal ones.

    Args:
        scales: (B, 2) floating.
        is_normal: (B,) bool; a kind that is absent adds nothing.
    """
    parts = [(math.e - scales[~is_normal]).flatten(), (scales[is_normal] - 1).relu().flatten()]
    return torch.stack([part.mean() for part in parts if part.numel()]).sum()


def mismatch_loss(scales: Tensor) -> Tensor:
    """Push the local scales (B, 2) of pairs whose image and cloud do not belong together to their top e."""
    return (math.e - scales).mean()


def consistency_loss(fused: Tensor, distances: Tensor, tolerance: float = 1.2, reference: bool = False) -> Tensor:
    """Keep the order of neighbours: l may grow little faster than plain distance does over near ranks, and must grow over far ones.

    With s the mean of both plain distances, ranks 1 .. a add relu(l_j - tolerance s_j / s_0 l_0) and ranks a + 1 .. 2a add
    relu(l_0 - l_j), means over patches and over a.

    Args:
        fused: (B, 2a + 1) floating, l of the ranks, nearest first; a >= 1.
        distances: (B, 2a + 1, 2) floating, the plain normalised distances.
        tolerance: published: 1.2.
        reference: pair every l_j with every ratio of the batch, (B, B) values instead of B, as the published broadcast does.

    Raises:
        ShapeError: shapes that do not fit, or an even number of ranks.
    """
    ranks = fused.shape[1] if fused.ndim == 2 else 0
    if distances.shape != (*fused.shape, 2) or ranks < 3 or ranks % 2 == 0:
        raise ShapeError(f"fused must be (B, 2a + 1) and distances (B, 2a + 1, 2), got {tuple(fused.shape)} and {tuple(distances.shape)}")
    half = ranks // 2
    mean = distances.mean(2)
    ratio = mean[:, 1 : half + 1] / mean[:, :1].clamp_min(EPSILON)
    first = fused[:, :1]
    if reference:
        near = (fused[:, None, 1 : half + 1] - tolerance * ratio[None] * first[:, None]).relu().mean((0, 1))
    else:
        near = (fused[:, 1 : half + 1] - tolerance * ratio * first).relu().mean(0)
    return (near.sum() + (first - fused[:, half + 1 :]).relu().mean(0).sum()) / half


def _check_bound(bound: float) -> None:
    if not 0 < bound < math.inf:
        raise ConfigError(f"bound must be a finite number above 0, got {bound}")


def _check_labels(fused: Tensor, is_normal: Tensor) -> None:
    check_values("fused", fused, "(B,)")
    if is_normal.shape != fused.shape or is_normal.dtype != torch.bool or not len(fused):
        raise ShapeError(f"is_normal must be bool {tuple(fused.shape)}, at least one patch, got {is_normal.dtype} {tuple(is_normal.shape)}")
    if not bool((fused >= 0).all()):
        raise DataError(f"fused distances must be >= 0, got {float(fused.min()):.3g}")
