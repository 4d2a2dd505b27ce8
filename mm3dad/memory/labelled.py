"""A memory of labelled rows: what a query resembles decides how defective it is.

MRAD (ICLR 2026, arXiv 2602.00522; retrieval sheet, part 3). Rows come from an auxiliary set, never from the parts under test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ConfigError, DataError, ShapeError

Level = Literal["image", "patch"]
Head = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
BLOCK_VALUES = 2**24  # similarities in work at once


def label_probability(queries: Tensor, keys: Tensor, values: Tensor, temperature: float = 1.0, dropped: Tensor | None = None) -> Tensor:
    """Return softmax(queries keys^T / temperature) values: for each query the labels of the rows it resembles.

    Args:
        queries: (Q, C) floating, unit rows, or projected ones.
        keys: (M, C) floating.
        values: (M, 2) floating, one-hot: normal, anomalous.
        temperature: above 0; 1 as in the published code, which keeps all probabilities close to the share of labels in the memory.
        dropped: (Q, M) bool, rows a query must not use; at least one stays for each.

    Returns:
        (Q, 2) float32, rows sum to 1.

    Raises:
        ShapeError: queries, keys and values do not belong together, or the memory is empty.
        ConfigError: a temperature that is not above 0.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1:] != keys.shape[1:] or values.shape != (len(keys), 2) or not len(keys):
        raise ShapeError(
            f"queries (Q, C), keys (M, C) and values (M, 2) must belong together, got {tuple(queries.shape)}, {tuple(keys.shape)} and "
            f"{tuple(values.shape)}; build the memory with the same backbone"
        )
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"temperature must be a finite number above 0, got {temperature}; 1 is the published code's")
    keys, values, found = keys.float(), values.float(), []
    step = max(1, BLOCK_VALUES // len(keys))
    for start in range(0, len(queries), step):
        logits = queries[start : start + step].float() @ keys.T / temperature
        if dropped is not None:
            logits = logits.masked_fill(dropped[start : start + step], -torch.inf)
        found.append(logits.softmax(1) @ values)
    return torch.cat(found) if found else queries.new_zeros(0, 2, dtype=torch.float32)


def similar_rows(queries: Tensor, keys: Tensor, quantile: float) -> Tensor:
    """Mark the rows that resemble a query more than a quantile of all rows does: similarity dropout, which takes out self-matches.

    Needed when the images that query are those of the memory, as in training (retrieval sheet, 3.4).

    Args:
        queries: (Q, C) floating, unit rows.
        keys: (M, C) floating, unit rows.
        quantile: in [0, 1], linearly interpolated; rows strictly above it are marked, so at least one stays.

    Returns:
        (Q, M) bool.

    Raises:
        ConfigError: a quantile out of range.
    """
    if not 0 <= quantile <= 1:
        raise ConfigError(f"quantile must lie in [0, 1], got {quantile}; 0.95 for images and 0.80 for patches are published")
    marked = []
    for block in queries.split(max(1, BLOCK_VALUES // max(len(keys), 1))):
        similarity = block @ keys.T
        marked.append(similarity > similarity.quantile(quantile, dim=1, keepdim=True))
    return torch.cat(marked)


def mask_cells(mask: Tensor, grid: tuple[int, int], exact: bool = False) -> tuple[Tensor, Tensor]:
    """Say which cells of a grid a defect covers and which it leaves alone.

    Args:
        mask: (H, W) bool.
        grid: (h, w).
        exact: the published rule: the mask, resized bilinearly, must be exactly 1 (or exactly 0) at the cell, which forgets small defects.
            False: a cell is anomalous when the defect covers half of it, or, for a smaller defect, the most any cell is covered.

    Returns:
        (P,) bool anomalous cells, (P,) bool normal cells; cells in between are neither.
    """
    values = mask.float()[None, None]
    if exact:
        cover = F.interpolate(values, size=grid, mode="bilinear")[0, 0].flatten()
        return cover == 1, cover == 0
    cover = F.adaptive_avg_pool2d(values, grid)[0, 0].flatten()
    return cover >= cover.max().clamp(1e-9, 0.5), cover == 0


def region_means(patches: Tensor, regions: Tensor) -> Tensor:
    """Return the mean patch of each region, zeros for an empty one.

    Args:
        patches: (P, C) floating.
        regions: (R, P) bool.

    Returns:
        (R, C) floating.
    """
    weight = regions.to(patches)
    return weight @ patches / weight.sum(1, keepdim=True).clamp_min(1)


class LabelledMemory:
    """Image rows and patch prototypes with labels (normal 0, anomalous 1), all of unit length, in half precision.

    Rows stream in image by image: one image row, and up to two prototypes (mean of its normal and of its anomalous cells).
    """

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.image_labels: list[int] = []
        self.patches: list[Tensor] = []
        self.patch_labels: list[int] = []

    def add(self, descriptor: Tensor, patches: Tensor, label: int, anomalous: Tensor, normal: Tensor) -> None:
        """Take in one labelled image.

        Args:
            descriptor: (C,) floating.
            patches: (P, C') floating, smoothed, not of unit length.
            label: 0 normal, 1 anomalous.
            anomalous, normal: (P,) bool cells, as `mask_cells` gives them.
        """
        self.images.append(F.normalize(descriptor.float(), dim=0).half())
        self.image_labels.append(label)
        for cells, kind in ((normal, 0), (anomalous, 1)):
            if bool(cells.any()):
                self.patches.append(F.normalize(region_means(patches, cells[None])[0], dim=0).half())
                self.patch_labels.append(kind)

    def require_both(self) -> None:
        """Demand normal and anomalous rows at both levels.

        Raises:
            DataError: there are none of one kind.
        """
        for kind, word in ((1, "defective"), (0, "normal")):
            lacks = "sample" if kind not in self.image_labels else "" if kind in self.patch_labels else "cell of the grid"
            if lacks:
                raise DataError(
                    f"the auxiliary set must hold normal and defective samples with masks, got {len(self.images)} samples and no "
                    f"{word} {lacks}; use a labelled test split of other products"
                )

    def rows(self, level: Level) -> tuple[Tensor, Tensor]:
        """Return the keys (M, C) float32, of unit length, and their labels (M, 2) one-hot: normal, anomalous."""
        keys, labels = (self.images, self.image_labels) if level == "image" else (self.patches, self.patch_labels)
        return torch.stack(keys).float(), F.one_hot(torch.tensor(labels), 2).float()

    def judge(self, level: Level, queries: Tensor, temperature: float = 1.0, head: Head | None = None, quantile: float = 1.0) -> Tensor:
        """Return how normal and how anomalous queries are, by the labelled rows that they resemble.

        Args:
            level: "image" compares with image rows, "patch" with prototypes.
            queries: (Q, C) floating, of any length.
            temperature: of the softmax.
            head: learned projections of queries and keys; None compares their cosines.
            quantile: rows more similar to a query than this quantile of all are left out, as in training; 1 leaves out none.

        Returns:
            (Q, 2) float32, rows sum to 1.
        """
        keys, values = (part.to(queries.device) for part in self.rows(level))
        queries = F.normalize(queries.float(), dim=1)
        dropped = similar_rows(queries, keys, quantile) if quantile < 1 else None
        if head is not None:
            queries, keys = head(queries, keys)
        return label_probability(queries, keys, values, temperature, dropped)

    def image_probability(self, descriptor: Tensor, temperature: float, head: Head | None = None) -> float:
        """Return how defective an image is, in [0, 1], from its (C,) descriptor."""
        return float(self.judge("image", descriptor[None], temperature, head)[0, 1])

    def patch_probability(self, patches: Tensor, temperature: float, head: Head | None = None) -> Tensor:
        """Return how defective each of (P, C') smoothed patches is: (P,) float32 in [0, 1]."""
        return self.judge("patch", patches, temperature, head)[:, 1]

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a model folder."""
        return {
            "image_keys": torch.stack(self.images),
            "image_labels": torch.tensor(self.image_labels),
            "patch_keys": torch.stack(self.patches),
            "patch_labels": torch.tensor(self.patch_labels),
        }

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor]) -> LabelledMemory:
        """Take back what `state` gave."""
        memory = cls()
        memory.images, memory.patches = list(tensors["image_keys"]), list(tensors["patch_keys"])
        memory.image_labels, memory.patch_labels = tensors["image_labels"].tolist(), tensors["patch_labels"].tolist()
        return memory
