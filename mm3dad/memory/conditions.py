"""Memory of how the sensors saw the normal samples: a few numbers of each, and how far apart they lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RESOLUTION = 0.01  # octaves, 0.7 %: a smaller difference tells nothing, however alike the normal samples are


class Conditions:
    """Conditions (n, D) of normal samples, as `features.condition` describes them, compared in their own spread.

    Distances are Euclidean after whitening by the covariance of the normal samples, so that what varies together, as the channels of a
    picture do under a lamp that flickers, counts once. The nearest normal sample counts, not their mean: a model may know several
    products.

    Args:
        rows: (n, D) floating, of the normal samples in their order; None or no rows: nothing is known, as in models from before.
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        self.rows = torch.empty(0, 0) if rows is None else rows
        self.gaps = torch.empty(0)  # of held-out normal samples from the others

    @property
    def is_known(self) -> bool:
        """Whether there is anything to compare with."""
        return len(self.rows) > 0

    def reopen(self, keep: Sequence[int] | None = None) -> Conditions:
        """Return the conditions of the samples numbered in `keep` (None: of all), to which others can be added."""
        return Conditions(self.rows if keep is None or not self.is_known else self.rows[list(keep)])

    def add(self, row: Tensor) -> None:
        """Take in (D,) of one more sample."""
        self.rows = torch.cat([self.rows.view(-1, len(row)), row[None]])

    def gap(self, row: Tensor) -> float:
        """Return how far (D,) lies from the most similar normal sample's."""
        return float(_nearest(row[None], self.rows)[0])

    def measure_gaps(self, folds: Sequence[Sequence[int]]) -> None:
        """Note how far each normal sample is from its most similar one outside its fold: `gaps` (n,)."""
        self.gaps = torch.zeros(len(self.rows))
        for fold in folds if self.is_known else ():
            others = sorted(set(range(len(self.rows))) - set(fold))
            self.gaps[list(fold)] = _nearest(self.rows[list(fold)], self.rows[others]).float()


def _nearest(queries: Tensor, rows: Tensor) -> Tensor:
    known = rows.double()
    spread = torch.cov(known.T, correction=0).view(known.shape[1], -1) + RESOLUTION**2 * torch.eye(known.shape[1], dtype=torch.float64)
    whiten = torch.linalg.inv(torch.linalg.cholesky(spread)).T
    return torch.cdist(queries.double() @ whiten, known @ whiten, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
