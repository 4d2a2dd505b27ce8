"""Score maps and ground truths as they are kept on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import interpolate

from mm3dad.types import Prediction

if TYPE_CHECKING:
    from torch import Tensor

MAP_PARTS = ("rgb_map", "xyz_map")


def resize_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a score map (H, W) to (h, w) float32, bilinear; pixel centres stay in place."""
    values = values.detach().cpu().float()
    if tuple(values.shape) == tuple(size):
        return values
    return interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a ground truth (H, W) to (h, w) bool by the nearest pixel centre, so that no grey edge arises."""
    if tuple(mask.shape) == tuple(size):
        return mask.cpu()
    return interpolate(mask.cpu()[None, None].float(), size=size, mode="nearest-exact")[0, 0] > 0.5


def file_stem(name: str) -> str:
    """Turn a sample's id into a file name: the slashes of "test/hole/003" become "__"."""
    return (
        "".join("__" if letter == "/" else letter if letter.isalnum() or letter in "-_." else "_" for letter in name).lstrip(".")
        or "sample"
    )


def make_maps(prediction: Prediction, mask: Tensor | None, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return map, mask (where known) and the maps per modality at `size`, as they are kept on disk."""
    tensors = {"map": resize_map(prediction.map, size)}
    if mask is not None:
        tensors["mask"] = resize_mask(mask, size)
    for name in MAP_PARTS:
        if name in prediction.parts:
            tensors[name] = resize_map(prediction.parts[name], size)
    return tensors
