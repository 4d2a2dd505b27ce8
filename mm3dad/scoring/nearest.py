"""Scores by distance to the nearest row of a bank of normal patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.ops import nearest_neighbors
from mm3dad.scoring._check import check_values


def nearest_scores(patches: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Score each patch by its Euclidean distance to the nearest bank row; exact, computed in blocks.

    Args:
        patches: (P, C) floating, finite.
        bank: (M, C) floating, finite, M >= 1.

    Returns:
        distance (P,), index (P,) int64 into `bank`.

    Raises:
        ShapeError: not two finite (., C) tensors of one width and device.
    """
    distance, index = nearest_neighbors(patches, bank, 1)
    return distance[:, 0], index[:, 0]


def reweight_score(
    patches: Tensor,
    distance: Tensor,
    index: Tensor,
    bank: Tensor,
    neighbors: int = 3,
    divisor: float = 1.0,
    epsilon: float = 0.0,
) -> float:
    """Image score of PatchCore-like methods: the largest patch distance, raised when its bank row is itself lonely.

    With s the largest distance / divisor, m its patch and m* its bank row: score = w * s and
    w = 1 - exp(s / sqrt C) / (epsilon + sum_j exp(|m - b_j| / divisor / sqrt C)) over the `neighbors` bank rows b_j
    nearest to m*, the first of which (m* itself) is left out. Exponents are shifted by their maximum, so large
    distances do not overflow. With no neighbour left (one bank row) w is 1.

    BTF takes divisor 1; M3DM's two banks divide by 1000; its RGB-only class adds epsilon 1e-5 (sheet 3 and 4.4).

    Args:
        patches: (P, C) floating.
        distance: (P,) from `nearest_scores`.
        index: (P,) from `nearest_scores`.
        bank: (M, C) floating.
        neighbors: rows looked at, m* included; more than M means all.
        divisor: unit of the distances inside the score.
        epsilon: added to the denominator.

    Raises:
        ShapeError: shapes do not fit together.
        DataError: NaN or infinite distances.
        ConfigError: neighbors below 1, divisor not above 0, or epsilon negative.
    """
    if neighbors < 1 or not divisor > 0 or not epsilon >= 0:
        raise ConfigError(f"neighbors >= 1, divisor > 0 and epsilon >= 0 are needed, got {neighbors}, {divisor}, {epsilon}")
    _check_matched(patches, "distance", distance, index, bank)
    worst = int(distance.argmax())
    score = float(distance[worst]) / divisor
    near = nearest_neighbors(bank[index[worst]][None], bank, min(neighbors, len(bank)))[1][0, 1:]
    if not len(near):
        return score
    root = math.sqrt(bank.shape[1])
    away = (patches[worst].double() - bank[near].double()).norm(dim=1) / divisor / root
    own = score / root
    shift = max(own, float(away.max()))
    weight = 1 - math.exp(own - shift) / (epsilon * math.exp(-shift) + float(torch.exp(away - shift).sum()))
    return weight * score


def support_score(patches: Tensor, scores: Tensor, index: Tensor, bank: Tensor, neighbors: int = 9) -> float:
    """Image score of CIF: the largest patch score times w = 1 - softmax(d)_1 (retrieval sheet, 1.6).

    d are the distances of that patch to the `neighbors` bank rows nearest to its own nearest row, which comes first. With one bank
    row there is nothing to compare with and w is 1.

    Args:
        patches: (P, C) floating; CIF takes the features before message passing.
        scores: (P,) >= 0, the patch scores.
        index: (P,) int64, each patch's nearest bank row.
        bank: (M, C) floating.
        neighbors: support rows, clamped to M.

    Raises:
        ShapeError: shapes do not fit together.
        DataError: NaN or infinite scores.
        ConfigError: neighbors below 1.
    """
    if neighbors < 1:
        raise ConfigError(f"neighbors must be at least 1, got {neighbors}; 9 is published")
    _check_matched(patches, "scores", scores, index, bank)
    worst = int(scores.argmax())
    support = nearest_neighbors(bank[index[worst]][None], bank, min(neighbors, len(bank)))[1][0]
    if len(support) == 1:
        return float(scores[worst])
    distances = (patches[worst].double() - bank[support].double()).norm(dim=1)
    return float((1 - distances.softmax(0)[0]) * scores[worst])


def _check_matched(patches: Tensor, name: str, values: Tensor, index: Tensor, bank: Tensor) -> None:
    check_values(name, values, "(P,)")
    if len(patches) != len(values) or index.shape != values.shape or patches.shape[1:] != bank.shape[1:]:
        raise ShapeError(
            f"patches (P, C), {name} (P,), index (P,) and bank (M, C) must fit together, got "
            f"{tuple(patches.shape)}, {tuple(values.shape)}, {tuple(index.shape)} and {tuple(bank.shape)}"
        )


def shared_normalisation(bank_xyz: Tensor, bank_rgb: Tensor) -> tuple[float, float, float, float]:
    """Scalars that M3DM subtracts from and divides by: for both modalities the mean of xyz and the deviation of RGB.

    It looks like a slip, but its author keeps it (M3DM issue 18); `own_normalisation` is the corrected form.

    Args:
        bank_xyz: (M, C) raw point bank.
        bank_rgb: (M', C') raw image bank.

    Returns:
        (xyz mean, xyz deviation, rgb mean, rgb deviation), deviations with n - 1.

    Raises:
        ShapeError: a bank is not a floating, non-empty (M, C).
        DataError: NaN or infinite values, or a bank without any spread.
    """
    (mean, _), (_, deviation) = bank_statistics("bank_xyz", bank_xyz), bank_statistics("bank_rgb", bank_rgb)
    return mean, deviation, mean, deviation


def own_normalisation(bank_xyz: Tensor, bank_rgb: Tensor) -> tuple[float, float, float, float]:
    """Return M3DM's scalars as one would expect them: each bank's own mean and deviation. Arguments as `shared_normalisation`."""
    return (*bank_statistics("bank_xyz", bank_xyz), *bank_statistics("bank_rgb", bank_rgb))


def bank_statistics(name: str, bank: Tensor) -> tuple[float, float]:
    """Return mean and deviation (n - 1) of all numbers of a bank (M, C).

    Args:
        name: of the bank, for errors.
        bank: (M, C) floating.

    Raises:
        ShapeError, DataError: as `shared_normalisation`.
    """
    check_values(name, bank, "(M, C)")
    # Block by block: a bank in double precision may not fit where the bank in half precision does.
    blocks = bank.split(max(1, 2**24 // bank.shape[1]))
    mean = math.fsum(float(block.double().sum()) for block in blocks) / bank.numel()
    squares = math.fsum(float((block.double() - mean).square().sum()) for block in blocks)
    deviation = math.sqrt(squares / max(1, bank.numel() - 1))
    if deviation == 0:
        raise DataError(f"{name} must hold different values to be normalised, got {bank.numel()} equal ones; check the extractor")
    return mean, deviation
