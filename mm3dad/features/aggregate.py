"""Similarity-weighted aggregation: each patch takes in those of its neighbours that look like it, at several ranges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops import nearest_neighbors


def aggregate_map(features: Tensor, degrees: Sequence[int] = (1, 3, 5)) -> Tensor:
    """Average each cell's windows, neighbours weighted by exp(-distance of their features to the cell's), and then the windows.

    A defect keeps its own features, as unlike neighbours weigh little; noise between like neighbours is averaged out. As published,
    cells beyond the border count as zero features. The features are taken as they come; the published form normalises the result to
    unit length afterwards.
    Source: MuSc-V2 (arXiv 2511.10047), SNAMD for images.

    Args:
        features: (C,h,w) or (B,C,h,w) floating.
        degrees: odd side lengths of the windows.
    Returns:
        the same shape and dtype.
    Raises:
        ShapeError: `features` is not a floating map.
        ConfigError: `degrees` is empty or holds a number that is not odd and positive.
    """
    _check_degrees(degrees, odd=True)
    if features.ndim not in (3, 4) or not features.is_floating_point() or 0 in features.shape:
        raise ShapeError(f"features must be floating (C,h,w) or (B,C,h,w), got {tuple(features.shape)} {features.dtype}")
    maps = features if features.ndim == 4 else features.unsqueeze(0)
    maps = maps.to(torch.promote_types(features.dtype, torch.float32))
    h, w = maps.shape[-2:]
    reach = max(degrees) // 2
    padded = functional.pad(maps, (reach,) * 4)
    total, weight, mean = torch.zeros_like(maps), torch.zeros_like(maps[:, :1]), torch.zeros_like(maps)
    # The windows are nested: add ring after ring, and read the mean off where a window ends.
    for ring in range(reach + 1):
        for row in range(-ring, ring + 1):
            for column in range(-ring, ring + 1):
                if max(abs(row), abs(column)) == ring:
                    neighbor = padded[..., reach + row : reach + row + h, reach + column : reach + column + w]
                    closeness = torch.exp(-torch.linalg.vector_norm(neighbor - maps, dim=1, keepdim=True))
                    total.addcmul_(neighbor, closeness)
                    weight += closeness
        mean += sum(degree == 2 * ring + 1 for degree in degrees) * total / weight
    return (mean / len(degrees)).to(features.dtype).view_as(features)


def aggregate_surface(
    features: Tensor,
    centers: Tensor,
    curvature: Tensor | None = None,
    degrees: Sequence[int] = (1, 3, 5),
    curvature_threshold: float = 0.01,
) -> Tensor:
    """Do the same among the group centres of a cloud, on its flat parts only.

    The neighbours of a centre are its nearest centres in space, itself first. Features are normalised to unit length; the means over
    the first r neighbours, one for each degree r, are joined and averaged down to C channels, so each degree fills its share of them.
    Where the surface is curved (`curvature` at or above the threshold) neighbours belong to other surfaces, and the normalised
    feature stays as it is.
    Source: MuSc-V2 (arXiv 2511.10047), SNAMD for points.

    Args:
        features: (G,C) floating, one row per centre.
        centers: (G,3) floating, metres.
        curvature: (G,) as `ops.iterative_group` gives it; None treats every centre as flat.
        degrees: numbers of neighbours, each at least 1; clamped to G.
        curvature_threshold: smallest curvature that counts as curved.
    Returns:
        (G,C), dtype of `features`.
    Raises:
        ShapeError: a shape or dtype does not fit.
        ConfigError: `degrees` is empty or holds a number below 1.
    """
    _check_degrees(degrees, odd=False)
    if features.ndim != 2 or not features.is_floating_point() or 0 in features.shape:
        raise ShapeError(f"features must be floating (G,C), got {tuple(features.shape)} {features.dtype}")
    if centers.shape != (len(features), 3):
        raise ShapeError(f"centers must be (G,3) with G = {len(features)} as in features, got {tuple(centers.shape)}")
    if curvature is not None and curvature.shape != (len(features),):
        raise ShapeError(f"curvature must be (G,) with G = {len(features)} as in features, got {tuple(curvature.shape)}")
    unit = functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
    _, near = nearest_neighbors(centers, centers, min(max(degrees), len(centers)))
    neighbor = unit[near]
    closeness = torch.exp(-torch.linalg.vector_norm(neighbor - unit.unsqueeze(1), dim=2, keepdim=True))
    total, weight = (closeness * neighbor).cumsum(dim=1), closeness.cumsum(dim=1)
    last = torch.tensor([min(degree, len(centers)) - 1 for degree in degrees], device=features.device)
    joined = (total[:, last] / weight[:, last]).flatten(1)
    pooled = functional.adaptive_avg_pool1d(joined.unsqueeze(1), unit.shape[1]).squeeze(1)
    if curvature is not None:
        pooled = torch.where((curvature < curvature_threshold).unsqueeze(1), pooled, unit)
    return pooled.to(features.dtype)


def _check_degrees(degrees: Sequence[int], odd: bool) -> None:
    wanted = "odd numbers of at least 1" if odd else "numbers of at least 1"
    if not degrees or any(degree < 1 or (odd and degree % 2 == 0) for degree in degrees):
        raise ConfigError(f"degrees must be {wanted}, e.g. (1, 3, 5), got {tuple(degrees)}")
