"""The nearest patches of two samples, in both directions, out of one matrix product that may be a rough one."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.ops._native import native_kernels
from mm3dad.ops.processor import has_bfloat16_units

BFLOAT16_ROUNDING = 2.0**-8


def pair_minima(
    product: Tensor, own: Tensor, theirs: Tensor, own_squares: Tensor, squares: Tensor, slack: float | None = None
) -> tuple[Tensor, Tensor, int]:
    """Take the least squared distance over b for each a, and over a for each b, for K samples b.

    The product says who may be nearest; the distance itself is taken from the difference of the rows, so that it keeps its digits
    however small it is beside the norms.

    Args:
        product: (P, K * Q), -2ab of P rows a with the Q rows b of K samples, dtype of `own`, or bfloat16 where `multiplies_roughly`.
        own: (P, C) float32 or float64, the rows a.
        theirs: (K, Q, C) the rows b.
        own_squares: (P,) squared norms of a.
        squares: (K, Q) squared norms of b.
        slack: the most that an entry of the product may be wrong by, as a share of |a||b|: whatever may be nearest within it is
            measured. None is the rounding of its own sums; a rough product needs `bfloat16_slack`.

    Returns:
        (K, P) and (K, Q) squared distances, and how many were measured.
    """
    kernels = native_kernels(product.device.type, "pair_minima") if own.dtype in (torch.float32, torch.float64) else None
    if kernels is None:
        return pair_minima_reference(product, own, theirs, own_squares, squares)
    if slack is None:
        slack = own.shape[1] * torch.finfo(own.dtype).eps
    given = [tensor.contiguous() for tensor in (product, own, theirs, own_squares, squares)]
    return kernels.pair_minima(*given, slack, torch.get_num_threads())


def pair_minima_reference(
    product: Tensor, own: Tensor, theirs: Tensor, own_squares: Tensor, squares: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Do the same in torch: the product's nearest are measured; a rough product is not looked at, each row is measured against all."""
    if product.dtype != own.dtype:
        pairs = [torch.stack([(row - one).square().sum(1) for row in own]) for one in theirs]
        return torch.stack([one.amin(1) for one in pairs]), torch.stack([one.amin(0) for one in pairs]), product.numel()
    by_pair = product.view(len(own), *squares.shape)
    nearest = (by_pair + squares).argmin(2).T
    forward = (own - torch.take_along_dim(theirs, nearest[:, :, None], 1)).square().sum(2)
    backward = (theirs - own[(by_pair + own_squares[:, None, None]).argmin(0)]).square().sum(2)
    return forward, backward, forward.numel() + backward.numel()


def multiplies_roughly(features: Tensor) -> bool:
    """Say whether bfloat16 products with an exact look at their minima are the faster way: on a processor with units for them."""
    fits = features.device.type == "cpu" and features.dtype == torch.float32
    return fits and has_bfloat16_units() and native_kernels("cpu", "pair_minima") is not None


def bfloat16_slack(features: Tensor, rounded: Tensor) -> float:
    """Bound the error of -2ab, of two rows in bfloat16 and rounded to it, as a share of |a||b|.

    Args:
        features: (..., C) float32.
        rounded: the same in bfloat16.
    """
    lost = torch.linalg.vector_norm(features - rounded.float(), dim=-1)
    length = torch.linalg.vector_norm(features, dim=-1)
    share = float((lost / length.clamp_min(torch.finfo(features.dtype).tiny)).max())
    # By Cauchy and Schwarz |ab - a'b'| <= (2 s + s^2)|a||b|; then float32 sums, and one rounding of the result.
    sums = features.shape[-1] * 2.0**-24
    return 2 * ((2 * share + share**2) + (sums + BFLOAT16_ROUNDING) * (1 + share) ** 2)
