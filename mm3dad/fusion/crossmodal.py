"""Cross-modal enhancement: evidence of one modality lifts the other where pixels and points coincide."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.fusion._check import check_values


def enhance(score_2d: Tensor, score_3d: Tensor, patch_of_center: Tensor, fraction: float = 0.3) -> tuple[Tensor, Tensor]:
    """Enhance the calibrated scores of one sample, image patches and point centres, by each other (duet; design, part 4.5).

    Column k holds the calibrated distances to the k-th most similar normal sample. For image patches, with A their
    scores and A_x the mean of the point scores B over the centres inside the patch (0 where there is none):

        c  = mean_k A_x / (mean_k A_x + std_k A_x)      do the normal samples agree that this is strange? 1 if K < 3
        A' = (A + max(A, c * A_x)) / 2

    and likewise for centres with B_x = A at the centre's patch. It follows MuSc-V2's steps (sheet 7.5) with two
    changes. There are no rank maps: they give every sample the value range of a defect and so hide one that only one
    modality sees. And the confidence weighs only what is borrowed, not the patch's own score. So no score is ever
    lowered: a defect that one modality alone sees keeps its score there and lifts the other modality to at most half
    of it; a patch without points is left as it is.

    At the end each row is reduced to the mean of its smallest max(1, int(fraction * K)) entries, as in mutual scoring:
    the best matching normal samples count, but a single lucky one less so.

    Args:
        score_2d: (P, K) floating, calibrated, >= 0.
        score_3d: (G, K) floating, calibrated, >= 0; G may be 0.
        patch_of_center: (G,) int64, the image patch in which each centre lies.
        fraction: in [0, 1]; 0 takes the minimum over K, 1 the mean.

    Returns:
        Enhanced scores (P,) and (G,).

    Raises:
        ShapeError: shapes do not fit together, or an index lies outside the patches.
        DataError: NaN or infinite scores.
        ConfigError: fraction is out of range.
    """
    if not 0 <= fraction <= 1:
        raise ConfigError(f"fraction must lie in [0, 1], got {fraction}; 0.3 is the default")
    seen_2d, seen_3d, _ = _exchange(score_2d, score_3d, patch_of_center)
    count = max(1, int(fraction * score_2d.shape[1]))
    first, second = (
        ((own + torch.maximum(own, _confidence(seen) * seen)) / 2).topk(count, dim=1, largest=False).values.mean(1)
        for own, seen in ((score_2d, seen_2d), (score_3d, seen_3d))
    )
    return first, second


def enhance_published(distance_2d: Tensor, distance_3d: Tensor, patch_of_center: Tensor, stable: bool = True) -> tuple[Tensor, Tensor]:
    """Enhance the mutual distances of one sample as MuSc-V2 does (CAE; sheet 7.5).

    Each modality keeps its own distribution of values by rank maps, so the result has the scale of its input. Centres
    in one patch receive equal rows; the published code leaves the order of such ties to an unstable sort, here they
    keep their order unless `stable` is False.

    Args:
        distance_2d: (P, K) distances of image patches to K other samples, K >= 2.
        distance_3d: (G, K) the same for point centres, G >= 1.
        patch_of_center: (G,) int64, the image patch in which each centre lies.
        stable: False sorts as the published code; its order of ties depends on the version of torch and the processor.

    Returns:
        Enhanced distances (P, K) and (G, K), to be averaged over the interval (7.4).

    Raises:
        ShapeError: shapes do not fit together, or an index lies outside the patches.
        DataError: NaN or infinite distances.
    """
    seen_2d, seen_3d, supported = _exchange(distance_2d, distance_3d, patch_of_center)
    if distance_2d.shape[1] < 2 or not len(distance_3d):
        raise ShapeError(f"the published enhancement needs K >= 2 samples and G >= 1 centres, got {tuple(distance_3d.shape)}")
    trust_2d, trust_3d = (1 - _map_ranks(own.std(1), seen.std(1), stable) for own, seen in ((distance_2d, seen_2d), (distance_3d, seen_3d)))
    seen_3d = _map_ranks(distance_3d, seen_3d, stable)
    seen_2d[supported] = _map_ranks(distance_2d[supported], seen_2d[supported], stable)
    enhanced = []
    for own, seen, trust in ((distance_2d, seen_2d, trust_2d), (distance_3d, seen_3d, trust_3d)):
        stronger = torch.maximum(own, seen) * trust[:, None]
        enhanced.append((own + _map_ranks(own, stronger, stable)) / 2)
    return enhanced[0], enhanced[1]


def _exchange(score_2d: Tensor, score_3d: Tensor, patch_of_center: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Carry scores across: (P, K) means over the centres of each patch, (G, K) those of each centre's patch, (P,) has centres."""
    check_values("score_2d", score_2d, "(P, K)")
    check_values("score_3d", score_3d, "(G, K)")
    patches = len(score_2d)
    if score_2d.shape[1] != score_3d.shape[1] or patch_of_center.shape != score_3d.shape[:1] or patch_of_center.dtype != torch.int64:
        raise ShapeError(
            "scores (P, K) and (G, K) and an int64 patch_of_center (G,) must fit together, got "
            f"{tuple(score_2d.shape)}, {tuple(score_3d.shape)} and {patch_of_center.dtype} {tuple(patch_of_center.shape)}"
        )
    if len(patch_of_center) and not 0 <= int(patch_of_center.min()) <= int(patch_of_center.max()) < patches:
        low, high = int(patch_of_center.min()), int(patch_of_center.max())
        raise ShapeError(f"patch_of_center must lie in 0 .. {patches - 1}, got {low} .. {high}; drop centres outside the image")
    members = torch.bincount(patch_of_center, minlength=patches)
    summed = torch.zeros_like(score_2d).index_add_(0, patch_of_center, score_3d.to(score_2d.dtype))
    return summed / members.clamp_min(1)[:, None], score_2d[patch_of_center].to(score_3d.dtype), members > 0


def _confidence(scores: Tensor) -> Tensor:
    """(rows, 1) in [0, 1]: 1 minus the spread over K, normalised by mean + spread; 1 where K < 3 tells no spread."""
    if scores.shape[1] < 3 or not len(scores):
        return scores.new_ones((len(scores), 1))
    mean, spread = scores.mean(1, keepdim=True), scores.std(1, keepdim=True)
    return mean / (mean + spread).clamp_min(torch.finfo(scores.dtype).tiny)


def _map_ranks(source: Tensor, target: Tensor, stable: bool) -> Tensor:
    """Give the i-th smallest entry of `target` the value of the i-th smallest of `source`; equal shapes."""
    result = torch.empty_like(source).flatten()
    order = stable_order(target.flatten()) if stable else target.flatten().sort().indices
    result[order] = _sorted(source.flatten())
    return result.view(source.shape)


def _sorted(values: Tensor) -> Tensor:
    # numpy's sort of plain numbers is vectorised, torch's is not.
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort().values


def stable_order(values: Tensor) -> Tensor:
    """Return the order (n,) that sorts finite values, equal ones by index.

    On the CPU a float32 value and its index become one whole number that sorts the same way, which numpy does about thirty times as
    fast as torch sorts stably.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.sort(stable=True).indices
    bits = (values + 0.0).numpy().view(np.int32).astype(np.int64)  # + 0.0: no negative zero
    keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | np.arange(len(bits))
    keys.sort()
    return torch.from_numpy(keys & 0xFFFFFFFF)
