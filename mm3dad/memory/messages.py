"""Message passing between a test image and a memory ordered by hyperedges, on the thin incidence matrices.

Source: CIF, "Commonality in Few" (AAAI 2026, arXiv 2511.05966); retrieval sheet, part 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.memory.structured import HypergraphMemory

# Bank rows compared with all test patches at once.
ROW_BLOCK = 4096


def cross_matches(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return each patch's bank row of highest cosine (N,), and each bank row's patch (A,); the (N, A) cosines come in blocks."""
    patches = normalize(features, dim=1)
    best = patches.new_full((len(patches),), -torch.inf)
    row = torch.zeros(len(patches), dtype=torch.int64, device=features.device)
    back = []
    for first in range(0, len(rows), ROW_BLOCK):
        cosine = patches @ normalize(rows[first : first + ROW_BLOCK], dim=1).T
        value, where = cosine.max(1)
        row, best = torch.where(value > best, where + first, row), torch.maximum(best, value)
        back.append(cosine.argmax(0))
    return row, torch.cat(back)


def pass_messages(features: Tensor, incidence: Tensor, memory: HypergraphMemory, loops: int = 1, alpha: float = 0.9) -> Tensor:
    """Smooth a test image's features over the joint hypergraph of its patches and the memory (Bi-TF-MP).

    Beside the hyperedges of image and memory, every patch is joined with its most similar row and every row with its most similar
    patch. With W = H D_e^-1 H^T and P = D^-1/2 (W + I) D^-1/2, the result is S X with
    S = alpha * sum_{l < loops} (1 - alpha)^l P^l + (1 - alpha)^loops P^loops, for the patches. H stays factored, so a step costs
    (N + A) (K + 2) C operations instead of (N + A)^2 C.

    Args:
        features: (N, C) floating test patches.
        incidence: (N, K) bool.
        memory: A rows of C channels.
        loops: L >= 0 steps (1 is published).
        alpha: in [0, 1], share of a feature that stays; 1 changes nothing.
    Returns:
        (N, C), dtype of `features`.
    Raises:
        ShapeError: the widths differ.
        ConfigError: loops or alpha out of range.
    """
    if features.ndim != 2 or memory.rows.shape[1:] != features.shape[1:] or incidence.shape[:1] != features.shape[:1]:
        raise ShapeError(
            "features (N, C), incidence (N, K) and bank rows (A, C) must fit together, got "
            f"{tuple(features.shape)}, {tuple(incidence.shape)} and {tuple(memory.rows.shape)}"
        )
    if loops < 0 or not 0 <= alpha <= 1:
        raise ConfigError(f"loops must be >= 0 and alpha lie in [0, 1], got {loops} and {alpha}; 1 and 0.9 are published")
    N, rows = len(features), memory.rows.to(features.dtype)
    own = incidence.to(features.dtype)
    size = own.sum(0).clamp_min(1)
    known, ids, members = memory.ids.unique(return_inverse=True, return_counts=True)
    row, patch = cross_matches(features, rows)
    # The row sums of W are the numbers of hyperedges a node is in, since each hyperedge hands out what it takes in.
    degree = torch.ones(N + len(rows), dtype=features.dtype, device=features.device)
    degree[:N] += own.sum(1) + 1 + torch.bincount(patch, minlength=N)
    degree[N:] += 2 + torch.bincount(row, minlength=len(rows))
    scale = degree.rsqrt()[:, None]

    def step(nodes: Tensor) -> Tensor:
        nodes = nodes * scale
        test, bank = nodes[:N], nodes[N:]
        pooled = torch.zeros(len(known), nodes.shape[1], dtype=nodes.dtype, device=nodes.device).index_add_(0, ids, bank)
        new_test = test + own @ ((own.T @ test) / size[:, None])
        new_bank = bank + (pooled / members[:, None])[ids]
        for left, right in ((torch.arange(N, device=row.device), row), (patch, torch.arange(len(rows), device=row.device))):
            half = (test[left] + bank[right]) / 2
            new_test = new_test.index_add(0, left, half)
            new_bank = new_bank.index_add(0, right, half)
        return torch.cat([new_test, new_bank]) * scale

    nodes = torch.cat([features, rows])
    total, weight = torch.zeros_like(features), 1.0
    for _ in range(loops):
        total += alpha * weight * nodes[:N]
        nodes, weight = step(nodes), weight * (1 - alpha)
    return total + weight * nodes[:N]
