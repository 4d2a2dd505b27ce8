"""The nearest patches of two samples, in both directions, out of one matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.ops._native import native_kernels


def pair_minima(product: Tensor, own: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Take the least squared distances |a|^2 + |b|^2 - 2ab over b for each a, and over a for each b; the sum itself is never held.

    Args:
        product: (P, K * Q) floating, -2ab of P rows a with the Q rows b of K samples.
        own: (P,) squared norms of a.
        theirs: (K, Q) squared norms of b.
    Returns:
        (K, P) and (K, Q). As rounded as the product: a distance small beside the norms may come out below 0.
    """
    kernels = native_kernels(product.device.type, "pair_minima") if product.dtype in (torch.float32, torch.float64) else None
    if kernels is None:
        return pair_minima_reference(product, own, theirs)
    return kernels.pair_minima(product.contiguous(), own.contiguous(), theirs.contiguous(), torch.get_num_threads())


def pair_minima_reference(product: Tensor, own: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same in torch."""
    by_sample = product.view(len(own), *theirs.shape)
    return (by_sample + theirs).amin(2).T + own, (by_sample + own[:, None, None]).amin(0) + theirs
