"""The nearest patches of two samples, in both directions: out of a matrix product, or of a rough one on matrix units."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from mm3dad.ops._native import has_kernel, native_kernels
from mm3dad.ops.processor import has_bfloat16_units

# Rows of a tile of the matrix units; two tiles are multiplied at a time, of 32 channels each.
TILE, BLOCK = 16, 32


def pair_minima(product: Tensor, own: Tensor, theirs: Tensor, own_squares: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Take the least squared distance over b for each a, and over a for each b, for K samples b.

    The product says who may be nearest; the distance itself is taken from the difference of the rows, so that it keeps its digits
    however small it is beside the norms.

    Args:
        product: (P, K * Q), -2ab of P rows a with the Q rows b of K samples, dtype of `own`.
        own: (P, C) floating, the rows a.
        theirs: (K, Q, C) the rows b.
        own_squares: (P,) squared norms of a.
        squares: (K, Q) squared norms of b.

    Returns:
        (K, P) and (K, Q) squared distances.
    """
    kernels = native_kernels(product.device.type, "pair_minima") if own.dtype in (torch.float32, torch.float64) else None
    if kernels is None:
        return pair_minima_reference(product, own, theirs, own_squares, squares)
    given = [tensor.contiguous() for tensor in (product, own, theirs, own_squares, squares)]
    return kernels.pair_minima(*given, torch.get_num_threads())


def pair_minima_reference(product: Tensor, own: Tensor, theirs: Tensor, own_squares: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same in torch."""
    by_pair = product.view(len(own), *squares.shape)
    nearest = (by_pair + squares).argmin(2).T
    forward = (own - torch.take_along_dim(theirs, nearest[:, :, None], 1)).square().sum(2)
    backward = (theirs - own[(by_pair + own_squares[:, None, None]).argmin(0)]).square().sum(2)
    return forward, backward


class RoughPairs:
    """Least squared distances of pairs of samples by bfloat16 products on a processor's matrix units: the same distances, sooner.

    A product only says who may be nearest within its error, and all of those are measured. Where too many are, as on surfaces that are
    alike everywhere, a pair is left to `pair_minima`. Holds two copies of the features in bfloat16.

    Args:
        features: (N, P, C) float32, around their mean, so that little is lost to rounding.
        squares: (N, P) squared norms.
        candidates: measured patches for each patch at which a pair is left.
    """

    def __init__(self, features: Tensor, squares: Tensor, candidates: int = 16) -> None:
        rounded = features.bfloat16()
        self.slack = bfloat16_slack(features, rounded)
        rounded = pad(rounded, (0, -features.shape[2] % BLOCK, 0, -features.shape[1] % BLOCK))
        # Two channels of a row make a word, and the words of 16 rows lie side by side: the layout that the units multiply by.
        self._packed = rounded.view(torch.int32).unflatten(1, (-1, TILE)).transpose(2, 3).contiguous()
        self._rows = rounded * -2
        self._features, self._squares = features.contiguous(), squares.contiguous()
        self._most = 2 * features.shape[1] * candidates

    @staticmethod
    def suit(features: Tensor) -> bool:
        """Say whether this is the place for them: float32 on a processor that has the units, and kernels built for it."""
        fits = features.device.type == "cpu" and features.dtype == torch.float32
        return fits and has_bfloat16_units() and native_kernels("cpu") is not None and has_kernel("pair_minima_rough", "cpu")

    def measure(self, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (M, P) of the first to the second of M `pairs` (M, 2) int64, (M, P) back, and (M,) which pairs were done, bool."""
        kernels = native_kernels("cpu", "pair_minima_rough")
        if kernels is None:
            return self.measure_reference(pairs)
        given = (self._rows, self._packed, self._features, self._squares, pairs.contiguous())
        forward, backward, measured = kernels.pair_minima_rough(*given, self.slack, self._most, torch.get_num_threads())
        return forward, backward, measured >= 0

    def measure_reference(self, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Do the same by torch's products in full; none is left."""
        found = []
        for i, j in pairs.tolist():
            own, theirs, other = self._features[i], self._features[j][None], self._squares[j][None]
            found.append(pair_minima_reference(-2 * own @ theirs[0].T, own, theirs, self._squares[i], other))
        forward, backward = (torch.cat(column) for column in zip(*found, strict=True))
        return forward, backward, torch.ones(len(pairs), dtype=torch.bool)


def bfloat16_slack(features: Tensor, rounded: Tensor) -> float:
    """Bound the error of -2ab, of two rows in bfloat16 added up in float32, as a share of |a||b|.

    Args:
        features: (..., C) float32.
        rounded: the same in bfloat16.
    """
    lost = torch.linalg.vector_norm(features - rounded.float(), dim=-1)
    length = torch.linalg.vector_norm(features, dim=-1)
    share = float((lost / length.clamp_min(torch.finfo(features.dtype).tiny)).max())
    # By Cauchy and Schwarz |ab - a'b'| <= (2 s + s^2)|a||b|; then the sums.
    sums = features.shape[-1] * torch.finfo(torch.float32).eps
    return 2 * ((2 * share + share**2) + sums * (1 + share) ** 2)
