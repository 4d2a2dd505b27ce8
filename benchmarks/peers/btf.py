"""BTF's pipeline, step by step as published (multimodal sheet, part 3), on the backbone of ours instead of WideResNet-50-2.

Written from the description, without a thought of speed. The published steps hold one Python loop, over the picks of the coreset;
`thin` is what fills its place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

from mm3dad.features.rgb import RGBExtractor
from mm3dad.types import Sample

GRID = 28
Thin = Callable[[Tensor, int], Tensor]


class PublishedBTF:
    """Fit and predict of BTF.

    Args:
        open3d: the package.
        extractor: gives maps of layers.
        thin: (rows, count) -> chosen rows.
    """

    def __init__(self, open3d: Any, extractor: RGBExtractor, thin: Thin) -> None:
        self.open3d, self.extractor, self.thin = open3d, extractor, thin
        self.bank = torch.empty(0)

    def fit(self, samples: Sequence[Sample]) -> PublishedBTF:
        """Describe all samples and keep a tenth of the patches."""
        rows = torch.cat([self.describe(sample) for sample in samples])
        self.bank = rows[self.thin(project(rows), int(0.1 * len(rows)))]
        return self

    def predict(self, sample: Sample) -> tuple[float, Tensor]:
        """Return the image score and the (224, 224) map."""
        patches = self.describe(sample)
        distances = torch.cdist(patches, self.bank)
        nearest, index = distances.min(dim=1)
        worst = int(nearest.argmax())
        score, match = nearest[worst], self.bank[index[worst]][None]
        # The published weight of the image score: the match's nearest rows, itself left out.
        near = torch.cdist(match, self.bank).topk(min(3, len(self.bank)), largest=False).indices[0, 1:]
        root = patches.shape[1] ** 0.5
        to_near = torch.linalg.vector_norm(patches[worst] - self.bank[near], dim=1)
        weight = 1 - torch.exp(score / root) / torch.exp(to_near / root).sum()
        heat = interpolate(nearest.view(1, 1, GRID, GRID), size=sample.size, mode="bilinear")[0, 0]
        peak = float(heat.max())
        image = Image.fromarray((heat / peak * 255).numpy().astype(np.uint8))
        return float(weight * score), torch.from_numpy(np.array(image.filter(ImageFilter.GaussianBlur(4)))) / 255 * peak

    def describe(self, sample: Sample) -> Tensor:
        """Return the (784, C) patches: layers of the image, then FPFH."""
        assert sample.rgb is not None
        layers = self.extractor.extract([sample.rgb])[0]
        pooled = [adaptive_avg_pool2d(avg_pool2d(layer, 3, stride=1), (GRID, GRID)) for layer in (*layers, self._shape(sample))]
        return torch.cat(pooled).flatten(1).T.contiguous()

    def _shape(self, sample: Sample) -> Tensor:
        assert sample.xyz is not None and sample.valid is not None
        cloud, registration = self.open3d.geometry, self.open3d.pipelines.registration
        points = sample.xyz.flatten(1).T[sample.valid.flatten()].double().numpy()
        wrapped = cloud.PointCloud(self.open3d.utility.Vector3dVector(points))
        wrapped.estimate_normals(cloud.KDTreeSearchParamHybrid(radius=0.1, max_nn=30))
        found = registration.compute_fpfh_feature(wrapped, cloud.KDTreeSearchParamHybrid(radius=0.25, max_nn=100)).data.T
        whole = torch.zeros(sample.valid.numel(), found.shape[1])
        whole[sample.valid.flatten()] = torch.tensor(found, dtype=torch.float32)
        return whole.T.reshape(-1, *sample.valid.shape)


def project(rows: Tensor) -> Tensor:
    """Project to the width of Johnson and Lindenstrauss at eps 0.9; narrower rows stay as they are, as published."""
    from sklearn.random_projection import SparseRandomProjection

    try:
        return torch.from_numpy(SparseRandomProjection(eps=0.9, random_state=0).fit_transform(rows.numpy())).float().contiguous()
    except ValueError:
        return rows


def thin_by_loop(rows: Tensor, count: int, until: float = math.inf) -> Tensor:
    """Pick greedily from row 0, one pick a turn of a Python loop, as published (there in half precision on a GPU).

    Past `until`, on `time.perf_counter`, it gives up and returns the picks so far.
    """
    last = rows[:1]
    nearest = torch.linalg.norm(rows - last, dim=1, keepdim=True)
    picks = [0]
    for _ in range(count - 1):
        if time.perf_counter() > until:
            break
        nearest = torch.minimum(torch.linalg.norm(rows - last, dim=1, keepdim=True), nearest)
        pick = int(nearest.argmax())
        last = rows[pick : pick + 1]
        nearest[pick] = 0
        picks.append(pick)
    return torch.tensor(picks)
