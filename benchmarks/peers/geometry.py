"""MuSc-V2's point grouping and interpolation, step by step as published (multimodal sheet, 4.1 and 7.2).

Written from the description, without a thought of speed. `loops=True` keeps the Python loop over centres, and the table of neighbours of
every point; `loops=False` is the same with the loop replaced by tensor operations and the table taken at the centres only.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor


def group(points: Tensor, center: Tensor, loops: bool, size: int = 128, step: int = 80, threshold: float = 0.01) -> Tensor:
    """Group (N, 3) points around (G,) centres: (G, size) indices."""
    search = NearestNeighbors(n_neighbors=2 * size).fit(points.numpy())
    if loops:
        table = torch.from_numpy(search.kneighbors(points.numpy(), return_distance=False))
        return torch.stack([_group_one(points, table[int(row)], size, step, threshold) for row in center])
    pool = torch.from_numpy(search.kneighbors(points[center].numpy(), return_distance=False))
    return _group_all(points, pool, size, step, threshold)


def measure_curvature(neighbors: Tensor) -> Tensor:
    """Smallest eigenvalue over the sum of all: (..., K, 3) -> (...)."""
    offsets = neighbors.double() - neighbors.double().mean(-2, keepdim=True)
    values = torch.linalg.eigvalsh(offsets.mT @ offsets)
    return values[..., 0] / values.sum(-1)


def _group_one(points: Tensor, pool: Tensor, size: int, step: int, threshold: float) -> Tensor:
    if float(measure_curvature(points[pool[1:size]])) < threshold:
        return pool[:size]
    members = pool[:step].tolist()
    while len(members) < size:
        taken = set(members)
        rest = [row for row in pool.tolist() if row not in taken]
        pairs = torch.cdist(points[members].double(), points[rest].double(), compute_mode="donot_use_mm_for_euclid_dist").flatten()
        shortest = pairs.argsort()[: min(step, size - len(members))]
        members += [rest[int(pair) % len(rest)] for pair in shortest]
    return torch.tensor(members)


def _group_all(points: Tensor, pool: Tensor, size: int, step: int, threshold: float) -> Tensor:
    index = pool[:, :size].clone()
    curved = (measure_curvature(points[pool[:, 1:size]]) >= threshold).nonzero()[:, 0]
    # One growth step, which is all that the default sizes need; 64 centres at a time.
    for rows in curved.split(64):
        near = pool[rows]
        place = points[near].double()
        pairs = torch.cdist(place[:, :step], place[:, step:], compute_mode="donot_use_mm_for_euclid_dist")
        shortest = pairs.flatten(1).topk(size - step, dim=1, largest=False).indices
        index[rows, step:] = near[:, step:].gather(1, shortest % place[:, step:].shape[1])
    return index


def interpolate(points: Tensor, centers: Tensor, features: Tensor, loops: bool) -> Tensor:
    """Interpolate (G, C) features to (N, 3) points from the three nearest centres, by float32 distances in product form.

    `loops=True` sorts every row of the distances and gathers (N, 3, C), as published; else the three smallest are selected and summed.
    """
    squared = -2 * points @ centers.T
    squared += (points**2).sum(-1)[:, None]
    squared += (centers**2).sum(-1)[None]
    if loops:
        squared, index = squared.sort(dim=-1)
        squared, index = squared[:, :3], index[:, :3]
    else:
        squared, index = squared.topk(3, dim=-1, largest=False)
    weight = 1 / (squared + 1e-8)
    weight = weight / weight.sum(-1, keepdim=True)
    if loops:
        return (features[index] * weight[..., None]).sum(1)
    return torch.nn.functional.embedding_bag(index, features, mode="sum", per_sample_weights=weight)


def nearest_of_all(points: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Distance of each point to the nearest of the chosen ones."""
    search = NearestNeighbors(n_neighbors=1).fit(points[chosen].astype(float))
    return search.kneighbors(points.astype(float))[0][:, 0]
