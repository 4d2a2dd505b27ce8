"""BTF's pipeline, step by step as published (multimodal sheet, part 3), with the embedded backbone in place of WideResNet-50-2.

Whole clouds of 224 x 224 through open3d's FPFH, both modalities side by side, a greedy coreset of a tenth on sparse random projections, one
full matrix of distances a sample. Apart from the coreset nothing in it loops, so that its vectorised form differs there alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import open3d
import torch
from PIL import Image, ImageFilter
from sklearn.random_projection import SparseRandomProjection
from torch import Tensor
from torch.nn import functional

from mm3dad.features.rgb import RGBExtractor
from mm3dad.types import Sample

SIZE, GRID, SHARE = 224, 28, 0.1
Pick = Callable[[Tensor, int], Tensor]


def pick_in_a_loop(rows: Tensor, count: int) -> Tensor:
    """Pick greedily, one pick after the other, from row 0."""
    picks, last = [torch.tensor(0)], rows[0:1]
    nearest = torch.linalg.norm(rows - last, dim=1, keepdim=True)
    for _ in range(count - 1):
        nearest = torch.minimum(torch.linalg.norm(rows - last, dim=1, keepdim=True), nearest)
        pick = torch.argmax(nearest)
        last = rows[pick : pick + 1]
        nearest[pick] = 0
        picks.append(pick)
    return torch.stack(picks)


class PublishedBTF:
    """Args: pick: how the coreset is chosen."""

    def __init__(self, pick: Pick = pick_in_a_loop) -> None:
        self.pick, self.extractor = pick, RGBExtractor()
        self.bank = torch.empty(0)

    def describe(self, sample: Sample) -> Tensor:
        """Return (784, C) features of both modalities."""
        assert sample.rgb is not None and sample.xyz is not None
        rgb = functional.interpolate(sample.rgb[None], (SIZE, SIZE), mode="bicubic", antialias=True)[0].clamp(0, 1)
        layers = [_pool(layer[None]) for layer in self.extractor.extract([rgb])[0]]
        xyz = functional.interpolate(sample.xyz[None], (SIZE, SIZE), mode="nearest")[0].flatten(1).T
        valid = (xyz != 0).all(1)
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz[valid].double().numpy()))
        cloud.estimate_normals(open3d.geometry.KDTreeSearchParamHybrid(radius=0.10, max_nn=30))
        search = open3d.geometry.KDTreeSearchParamHybrid(radius=0.25, max_nn=100)
        histograms = open3d.pipelines.registration.compute_fpfh_feature(cloud, search).data.T
        scattered = torch.zeros(SIZE * SIZE, 33)
        scattered[valid] = torch.from_numpy(np.array(histograms)).float()
        points = _pool(scattered.T.view(1, 33, SIZE, SIZE))
        return torch.cat([*layers, points], 1)[0].flatten(1).T

    def fit(self, samples: Sequence[Sample]) -> PublishedBTF:
        """Fill the bank."""
        rows = torch.cat([self.describe(sample) for sample in samples])
        projection = SparseRandomProjection(eps=0.9, random_state=0)
        try:
            projected = torch.from_numpy(np.asarray(projection.fit_transform(rows.numpy()))).float()
        except ValueError:  # fewer channels than the projection would have: it goes on with the rows as they are
            projected = rows
        self.bank = rows[self.pick(projected, int(SHARE * len(rows)))]
        return self

    def predict(self, sample: Sample) -> tuple[float, Tensor]:
        """Return the image score and the map (224, 224)."""
        rows = self.describe(sample)
        distances, index = torch.cdist(rows, self.bank).min(1)
        worst = int(distances.argmax())
        matched = self.bank[index[worst]][None]
        near = torch.cdist(matched, self.bank).topk(3, largest=False).indices[0, 1:]
        width = rows.shape[1] ** 0.5
        others = torch.linalg.norm(rows[worst] - self.bank[near], dim=1)
        weight = 1 - torch.exp(distances[worst] / width) / torch.exp(others / width).sum()
        heat = functional.interpolate(distances.view(1, 1, GRID, GRID), (SIZE, SIZE), mode="bilinear")[0, 0]
        top = heat.max()
        picture = Image.fromarray((heat / top * 255).to(torch.uint8).numpy()).filter(ImageFilter.GaussianBlur(4))
        return float(weight * distances[worst]), torch.from_numpy(np.asarray(picture).astype(np.float32)) / 255 * top


def _pool(layer: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(functional.avg_pool2d(layer, 3, stride=1), (GRID, GRID))
