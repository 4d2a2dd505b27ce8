"""Mutual scoring beside the published code and the bare matrix products; windowed retrieval beside its loop."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.harness import Growth, Peer, Row
from benchmarks.peers.musc import distances, interval
from benchmarks.rows.muscv2 import GRID, make_features
from mm3dad.scoring.mutual import mutual_scores
from mm3dad.scoring.windowed import windowed_scores


def largest_gap(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of two results."""
    return float((ours - theirs).abs().max())


def score_published(features: Tensor) -> Tensor:
    """Score a set as published: each sample against all others, so that each pair is multiplied twice."""
    return torch.stack([interval(distances(features, query)) for query in range(len(features))])


def multiply_pairs(features: Tensor) -> Tensor:
    """Multiply each pair of samples once, into one buffer: the least that any exact way costs."""
    buffer = features.new_empty((features.shape[1],) * 2)
    for i in range(len(features) - 1):
        for j in range(i + 1, len(features)):
            torch.mm(features[i], features[j].T, out=buffer)
    return buffer


def make_mutual(quick: bool) -> Row:
    """12 samples of 784 patches x 768, and growing N."""
    patches, width = (64, 32) if quick else (GRID * GRID, 768)
    sizes = (4, 6, 8) if quick else (6, 12, 24, 48)
    sides = {"mm3dad": mutual_scores, "published": score_published, "bare products": multiply_pairs}

    def make_side(side: str, size: int) -> partial[Tensor]:
        return partial(sides[side], make_features(size, patches, width).float())

    features = make_features(12, patches, width).float()
    return Row(
        work="mutual scores of a set",
        inputs=f"12 samples x {patches} patches x {width}, random prototypes with noise",
        ours=partial(mutual_scores, features),
        peers=[
            Peer("published", partial(score_published, features), "MuSc-V2's, re-implemented from the sheet", largest_gap, 1e-4, reach=2),
            Peer("bare products", partial(multiply_pairs, features), "torch.mm, each pair once", lambda *_: 0.0, reach=1 / 1.4),
        ],
        growth=Growth("samples", sizes, make_side, tuple(sides)),
    )


def score_by_loop(patches: Tensor, bank: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Score patch by patch, as RAD's published code does: gather the window's rows of all images, multiply, take the best."""
    query, rows = normalize(patches, dim=1), normalize(bank, dim=2).view(len(bank), *grid, -1)
    scores = []
    for cell, patch in enumerate(query):
        row, column = divmod(cell, grid[1])
        near = rows[:, max(0, row - window) : row + window + 1, max(0, column - window) : column + window + 1]
        scores.append(1 - (near.reshape(-1, near.shape[3]) @ patch).max())
    return torch.stack(scores).clamp(0, 2)


def make_windowed(quick: bool) -> Row:
    """150 retrieved images, window 1, as RAD runs."""
    grid, images, width = ((8, 8), 5, 32) if quick else ((28, 28), 150, 768)
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(images, grid[0] * grid[1], width, generator=generator).half()
    patches = torch.randn(grid[0] * grid[1], width, generator=generator)
    wide = bank.float()
    return Row(
        work="windowed retrieval, window 1",
        inputs=f"{grid[0]} x {grid[1]} patches x {width} against {images} images in half precision (the peer's in single)",
        ours=partial(windowed_scores, patches, bank, grid, 1),
        peers=[
            Peer("loop", partial(score_by_loop, patches, wide, grid, 1), "RAD's, re-implemented from the sheet", largest_gap, 1e-3),
        ],
    )


ROWS = {"mutual_scores": make_mutual, "windowed_scores": make_windowed}
