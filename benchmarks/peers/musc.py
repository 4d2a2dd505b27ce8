"""MuSc-V2's scoring, step by step as published: mutual scores, cross-modal enhancement, interval mean (multimodal sheet, 7.4 and 7.5).

Written from the description, without a thought of speed. Per query and layer all distances to all other samples are computed, so each
pair of samples is multiplied twice. `loops=True` aligns patches and centres one by one in Python, as the published code does;
`loops=False` is the same with those loops replaced by tensor operations.
"""

from __future__ import annotations

import torch
from torch import Tensor


def score_set(layers_2d: list[Tensor], layers_3d: list[Tensor], patch: Tensor, loops: bool) -> tuple[Tensor, Tensor]:
    """Score a set.

    Args:
        layers_2d: per layer (N, P, C) image patches.
        layers_3d: per layer (N, G, C) point centres.
        patch: (N, G) the patch that holds each centre.
        loops: align in Python loops.
    Returns:
        (N, P) and (N, G).
    """
    count = len(layers_2d[0])
    scores_2d, scores_3d = [], []
    for features_2d, features_3d in zip(layers_2d, layers_3d, strict=True):
        rows_2d, rows_3d = [], []
        for query in range(count):
            distance_2d, distance_3d = distances(features_2d, query), distances(features_3d, query)
            enhanced = enhance(distance_2d, distance_3d, patch[query], loops)
            rows_2d.append(interval(enhanced[0]))
            rows_3d.append(interval(enhanced[1]))
        scores_2d.append(torch.stack(rows_2d))
        scores_3d.append(torch.stack(rows_3d))
    return torch.stack(scores_2d).mean(0), torch.stack(scores_3d).mean(0)


def distances(features: Tensor, query: int) -> Tensor:
    """Distance of each patch of the query to the nearest patch of each other sample: (P, N - 1)."""
    others = torch.cat([features[:query], features[query + 1 :]])
    every = torch.cdist(features[query], others.flatten(0, 1))
    return every.view(len(every), len(others), -1).min(2).values


def interval(distance: Tensor, share: float = 0.3) -> Tensor:
    """Mean of the smallest 30 %, at least one."""
    count = max(1, int(share * distance.shape[1]))
    return distance.topk(count, dim=1, largest=False).values.mean(1)


def enhance(own_2d: Tensor, own_3d: Tensor, patch: Tensor, loops: bool) -> tuple[Tensor, Tensor]:
    """The six steps of 7.5 on the distances of one query."""
    seen_2d, seen_3d, supported = align_by_loops(own_2d, own_3d, patch) if loops else align_by_index(own_2d, own_3d, patch)
    trust_2d = 1 - map_ranks(own_2d.std(1), seen_2d.std(1))
    trust_3d = 1 - map_ranks(own_3d.std(1), seen_3d.std(1))
    seen_3d = map_ranks(own_3d, seen_3d)
    seen_2d[supported] = map_ranks(own_2d[supported], seen_2d[supported])
    seen_2d, seen_3d = torch.maximum(own_2d, seen_2d), torch.maximum(own_3d, seen_3d)
    seen_2d, seen_3d = seen_2d * trust_2d[:, None], seen_3d * trust_3d[:, None]
    seen_2d, seen_3d = map_ranks(own_2d, seen_2d), map_ranks(own_3d, seen_3d)
    return (own_2d + seen_2d) / 2, (own_3d + seen_3d) / 2


def align_by_loops(own_2d: Tensor, own_3d: Tensor, patch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Alignment patch by patch and centre by centre."""
    seen_2d, seen_3d = torch.zeros_like(own_2d), torch.zeros_like(own_3d)
    supported = torch.zeros(len(own_2d), dtype=torch.bool)
    for cell in range(len(own_2d)):
        inside = torch.nonzero(patch == cell)[:, 0]
        if len(inside) > 0:
            seen_2d[cell] = own_3d[inside].mean(0)
            supported[cell] = True
    for center in range(len(own_3d)):
        seen_3d[center] = own_2d[patch[center]]
    return seen_2d, seen_3d, supported


def align_by_index(own_2d: Tensor, own_3d: Tensor, patch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same without Python loops."""
    size = torch.bincount(patch, minlength=len(own_2d))
    seen_2d = torch.zeros_like(own_2d).index_add_(0, patch, own_3d) / size.clamp_min(1)[:, None]
    return seen_2d, own_2d[patch], size > 0


def map_ranks(source: Tensor, target: Tensor) -> Tensor:
    """Give the i-th smallest entry of `target` the value of the i-th smallest of `source`; equal ones in order."""
    result = torch.empty_like(source).flatten()
    result[target.flatten().sort(stable=True).indices] = source.flatten().sort().values
    return result.view(source.shape)
