"""Residuals to the most similar reference, their matching to the distribution of normal ones, and maps of likelihoods (ResAD).

Source: ResAD (NeurIPS 2024, arXiv 2410.20047) and ResAD++ (IJCV 2026, arXiv 2509.23741); retrieval sheet, 4.2, 4.4 and 4.7.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import nearest_neighbors
from mm3dad.scoring._check import check_values
from mm3dad.scoring.maps import smooth_map, upsample_map


def match_references(features: Tensor, references: Tensor, cosine: bool = True) -> Tensor:
    """Return the number of the reference most similar to each feature, whatever its place: (P,) int64.

    Args:
        features: (P, C) floating.
        references: (R, C) floating, R >= 1.
        cosine: by cosine, as the published code does; False by Euclidean distance, as the paper writes.

    Raises:
        ShapeError: widths that differ, no feature or no reference.
        DataError: NaN or infinite values.
    """
    check_values("features", features, "(P, C)")
    check_values("references", references, "(R, C)")
    if features.shape[1] != references.shape[1]:
        raise ShapeError(
            f"features (P, C) and references (R, C) must have one width, got {tuple(features.shape)} and "
            f"{tuple(references.shape)}; use the backbone the model was fitted with"
        )
    if cosine:
        features, references = F.normalize(features, dim=1), F.normalize(references, dim=1)
    return nearest_neighbors(features, references, 1)[1][:, 0]


def take_residual(features: Tensor, references: Tensor, cosine: bool = True, squared: bool = True) -> Tensor:
    """Return what is left of features (P, C) once the most similar of references (R, C) is taken off.

    Args:
        cosine: as `match_references`.
        squared: element-wise squares, which suit a constraintor that ends in a ReLU; False keeps the sign.
    """
    left = features - references[match_references(features, references, cosine)]
    return left.square() if squared else left


def match_histogram(values: Tensor, target: Tensor, alpha: float = 0.4) -> Tensor:
    """Move the values of each channel towards the target's, rank by rank: alpha of their own + (1 - alpha) of the target's.

    Args:
        values, target: (P, C) floating, the cells of one image.
        alpha: 1 leaves the values, 0 gives them the target's histogram.

    Raises:
        ShapeError: two shapes.
        DataError: NaN or infinite values.
        ConfigError: alpha not in [0, 1].
    """
    check_values("values", values, "(P, C)")
    check_values("target", target, "(P, C)")
    if values.shape != target.shape:
        raise ShapeError(f"values and target must have one shape, got {tuple(values.shape)} and {tuple(target.shape)}")
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must lie in [0, 1], got {alpha}; 0.4 is published")
    ordered, order = values.sort(0)
    return torch.empty_like(values).scatter(0, order, alpha * ordered + (1 - alpha) * target.sort(0).values)


def likelihood_map(
    likelihoods: Sequence[Tensor], probabilities: Sequence[Tensor], size: tuple[int, int], tops: Sequence[float], sigma: float = 4.0
) -> tuple[Tensor, Tensor]:
    """Make maps of levels: how unlikely a pixel is under normal residuals, and how probable it is under anomalous ones.

    The first is the number of levels minus the sum over levels of exp(log-likelihood - top); the second the mean over levels.

    Args:
        likelihoods: per level (h, w), log-likelihood of being normal.
        probabilities: per level (h, w), probability of being anomalous.
        size: (H, W) of the maps.
        tops: per level, the largest log-likelihood: of normal samples, or, as published, of the whole test set.
        sigma: Gaussian smoothing, in pixels.

    Returns:
        Both maps (H, W), smoothed; ResAD's score is their mean. The published code subtracts the sum from its largest value instead.

    Raises:
        ShapeError: levels that do not fit.
    """
    if not len(likelihoods) == len(probabilities) == len(tops) >= 1:
        counts = f"{len(likelihoods)}, {len(probabilities)} and {len(tops)}"
        raise ShapeError(f"each level needs likelihoods, probabilities and a top, got {counts}")
    likely = torch.stack([upsample_map((one - top).exp(), size, True) for one, top in zip(likelihoods, tops, strict=True)])
    probable = torch.stack([upsample_map(one, size, align_corners=True) for one in probabilities])
    return smooth_map(len(tops) - likely.sum(0), sigma), smooth_map(probable.mean(0), sigma)
