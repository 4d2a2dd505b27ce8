"""Each modality alone is blind to part of the defects: nearest-patch search on RGB alone and on FPFH alone.

The default run is small. `MM3DAD_FULL=1` takes every category at 400 x 400 with the default counts and prints the
figures of docs/synthetic.md (about ten minutes on 2 cores).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from mm3dad.data.synthetic import CATEGORIES, COUNTS, write_dataset
from mm3dad.features.rgb import RGBExtractor

FULL = os.environ.get("MM3DAD_FULL") == "1"
GRID, BANK = (112, 15000) if FULL else (84, 3000)  # side of the thinned cloud; patches of normal parts
SETTING = (
    {"categories": CATEGORIES, "size": 400, "counts": COUNTS}
    if FULL
    else {
        "categories": ("cable", "gasket", "potato"),
        "size": 168,
        "counts": {"train": 8, "validation": 0, "good": 10, "defect": 2},
    }
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("hardness") / "tree", **SETTING)


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks run no faster on more threads, and much slower where other processes use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _describe_rgb():
    """Return a function from a picture to (784, C) features of the embedded default network at 224 x 224."""
    extractor = RGBExtractor()

    def describe(path: Path) -> torch.Tensor:
        rgb = torch.from_numpy(np.asarray(Image.open(path).resize((224, 224), Image.Resampling.BICUBIC)).copy()).permute(2, 0, 1) / 255
        layers = extractor.extract([rgb])[0]
        pooled = [torch.nn.functional.avg_pool2d(layer[None], 3, 1, 1) for layer in layers]
        fitted = [torch.nn.functional.interpolate(layer, (28, 28), mode="bilinear") for layer in pooled]
        return torch.cat(fitted, 1)[0].flatten(1).T

    return describe


def _describe_cloud():
    """Return a function from a cloud to (P, 33) FPFH of a thinned cloud, pooled on a 28 x 28 grid."""
    import open3d as o3d

    search = o3d.geometry.KDTreeSearchParamHybrid

    def describe(path: Path) -> torch.Tensor:
        xyz = tifffile.imread(path)
        rows = np.arange(GRID) * len(xyz) // GRID
        xyz = xyz[rows][:, rows]
        valid = (xyz != 0).any(-1)
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz[valid].astype(np.float64)))
        cloud.estimate_normals(search(radius=0.006, max_nn=20))
        cloud.orient_normals_towards_camera_location()
        grid = np.zeros((GRID, GRID, 33), np.float32)
        grid[valid] = o3d.pipelines.registration.compute_fpfh_feature(cloud, search(radius=0.01, max_nn=50)).data.T
        cell = GRID // 28
        count = valid.reshape(28, cell, 28, cell).sum((1, 3))
        pooled = grid.reshape(28, cell, 28, cell, 33).sum((1, 3)) / np.maximum(count, 1)[..., None]
        return torch.from_numpy(pooled[count > 2])

    return describe


def _score(tree: Path, category: str, role: str, suffix: str, describe) -> float:
    """Return the image AUROC of the largest distance of a patch to the nearest patch of the normal parts."""
    bank = torch.cat([describe(path) for path in sorted((tree / category / "train" / "good" / role).glob(f"*{suffix}"))])
    bank = bank[torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:BANK]]
    paths = sorted((tree / category / "test").glob(f"*/{role}/*{suffix}"))
    scores = [float(torch.cdist(describe(path), bank).min(1).values.max()) for path in paths]
    return float(roc_auc_score([path.parts[-3] != "good" for path in paths], scores))


@pytest.mark.parametrize(("role", "suffix", "make"), [("rgb", ".png", _describe_rgb), ("xyz", ".tiff", _describe_cloud)])
def test_one_modality_alone_finds_only_part_of_the_defects(tree, capsys, role, suffix, make):
    describe = make()
    figures = {category: _score(tree, category, role, suffix, describe) for category in SETTING["categories"]}
    mean = sum(figures.values()) / len(figures)
    if FULL:
        with capsys.disabled():
            sys.stdout.write(f"\n{role}: {', '.join(f'{name} {value:.3f}' for name, value in figures.items())}; mean {mean:.3f}\n")
    assert 0.65 < mean < 0.90, figures
