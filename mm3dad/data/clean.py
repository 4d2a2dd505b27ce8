"""Removal of the background plane and of stray points from one organised sample, seeded and never in place."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from mm3dad.data.organized import pad_square
from mm3dad.data.records import name_points
from mm3dad.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from mm3dad.types import Sample


@dataclass(frozen=True)
class CleanConfig:
    """Parameters of the standard MVTec 3D-AD preprocessing (BTF, M3DM, MuSc-V2), metres.

    Args:
        seed: of the random plane candidates.
        border: width in pixels of the frame that shows background.
        fit_distance: a border point nearer than this votes for a plane.
        candidates: number of random planes.
        drop_distance: points nearer than this to the plane are removed.
        cluster_distance: neighbourhood radius of DBSCAN.
        cluster_points: points that make a neighbourhood dense.
        multiple: the padded side is a multiple of this; 0 keeps the size.
        max_removed: refuse when the plane would take more than this share of the valid points.
    """

    seed: int = 0
    border: int = 10
    fit_distance: float = 0.004
    candidates: int = 1000
    drop_distance: float = 0.005
    cluster_distance: float = 0.006
    cluster_points: int = 30
    multiple: int = 100
    max_removed: float = 0.8

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kinds = getattr(self, field.name), (int,) if isinstance(field.default, int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds):
                wanted = "a whole number" if kinds == (int,) else "a number"
                raise ConfigError(f"{field.name} must be {wanted}, got {value!r}; leave it out for the published value")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must lie in [0, 2^63), got {self.seed}; use a smaller one")
        for name in ("border", "fit_distance", "candidates", "drop_distance", "cluster_distance", "cluster_points"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)!r}; leave it out for the published value")
        if not 0 < self.max_removed <= 1 or self.multiple < 0:
            raise ConfigError(
                f"max_removed must lie in (0, 1] and multiple be >= 0, got {self.max_removed!r}, {self.multiple!r}; leave them out"
            )


def fit_plane(points: Tensor, distance: float, candidates: int = 1000, seed: int = 0) -> tuple[Tensor, float]:
    """Fit a plane to most of the points: RANSAC over three-point candidates, then least squares on the inliers.

    Args:
        points: (N, 3) metres, N >= 3.
        distance: metres within which a point supports a plane.
        candidates: number of random triples.
        seed: of the triples; the result repeats bit for bit.

    Returns:
        Unit normal (3,) float64 and offset d, so that normal . p + d = 0; its largest component is positive.

    Raises:
        DataError: fewer than three points, or all on one line.
    """
    if len(points) < 3:
        raise DataError(f"a plane needs at least 3 points, got {len(points)}; check that the border of the cloud is not empty")
    points = points.double()
    random = torch.Generator().manual_seed(seed)
    triples = points[torch.randint(len(points), (candidates, 3), generator=random)]
    normals = torch.linalg.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    lengths = normals.norm(dim=1)
    usable = lengths > 1e-12
    if not bool(usable.any()):
        raise DataError("the border points of the cloud lie on one line, no plane fits; check the xyz file")
    normals = normals[usable] / lengths[usable, None]
    offsets = -(normals * triples[usable, 0]).sum(1)
    votes = torch.cat([((points @ n.T + d).abs() < distance).sum(0) for n, d in zip(normals.split(64), offsets.split(64), strict=True)])
    best = int(votes.argmax())
    inliers = points[(points @ normals[best] + offsets[best]).abs() < distance]
    centre = inliers.mean(0)
    normal = torch.linalg.svd(inliers - centre, full_matrices=False).Vh[2] if len(inliers) > 3 else normals[best]
    normal = normal * normal[normal.abs().argmax()].sign()
    return normal, -float(normal @ centre)


def label_clusters(points: np.ndarray, eps: float, min_points: int) -> np.ndarray:
    """Return (N,) int64 DBSCAN labels of points (N, 3), -1 for noise."""
    if len(points) == 0:
        return np.empty(0, np.int64)
    import open3d

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(np.ascontiguousarray(points, np.float64)))
    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        return np.asarray(cloud.cluster_dbscan(eps, min_points), dtype=np.int64)


def find_plane_points(sample: Sample, config: CleanConfig) -> Tensor:
    """Return (H, W) bool: valid points on the plane that the border of the cloud shows.

    Raises:
        DataError: no cloud, no grid, an empty border, or a flat part (the plane would take more than `max_removed`).
    """
    if sample.xyz is None or sample.valid is None or not sample.meta.organised:
        raise DataError(f"sample {sample.meta.id!r} has no organised cloud, plane removal needs one; leave it as it is")
    name = name_points(sample.meta.paths, f"sample {sample.meta.id!r}")
    border = torch.ones_like(sample.valid)
    border[config.border : -config.border, config.border : -config.border] = False
    border &= sample.valid
    if int(border.sum()) < 3:
        count = int(sample.valid.sum())
        state = "is all zeros" if count == 0 else f"has {int(border.sum())} points in its border, but {count} inside"
        cure = "remove this sample or copy the file again" if count == 0 else "its background is removed already, use the tree as it is"
        raise DataError(f"{name} {state}, a background plane needs 3; {cure}")
    normal, offset = fit_plane(sample.xyz[:, border].T, config.fit_distance, config.candidates, config.seed)
    distance = (torch.einsum("c,chw->hw", normal, sample.xyz.double()) + offset).abs()
    plane = sample.valid & (distance < config.drop_distance)
    share = float(plane.sum() / sample.valid.sum())
    if share > config.max_removed:
        raise DataError(
            f"plane removal would take {share:.0%} of the valid points of {name}, expected at most {config.max_removed:.0%}; "
            "a flat part is used as it is, without prepare; for a part that is small in its image raise max_removed (at most 1)"
        )
    return plane


def clean_sample(sample: Sample, config: CleanConfig | None = None) -> Sample:
    """Remove the background plane, pad to a square and keep the largest cluster (multimodal sheet 1.2).

    Args:
        sample: with an organised cloud; rgb and mask are optional.
        config: parameters, the published ones by default.

    Returns:
        A new sample: xyz and rgb are zero where points were removed, all arrays padded alike.
        Colour at pixels that never had a point stays, as in the published preprocessing; unlike there,
        noise is never taken for the largest cluster.

    Raises:
        DataError: see `find_plane_points`; or no point is left.
    """
    config = config or CleanConfig()
    removed = find_plane_points(sample, config)
    xyz, valid = sample.xyz, sample.valid
    assert xyz is not None and valid is not None  # find_plane_points has refused the others
    kept = valid & ~removed
    label = label_clusters(xyz.numpy()[:, kept.numpy()].T, config.cluster_distance, config.cluster_points)
    if label.size == 0 or label.max() < 0:
        raise DataError(
            f"no cluster of {config.cluster_points} points is left of {name_points(sample.meta.paths, f'sample {sample.meta.id!r}')}; "
            "check the unit of its cloud (metres)"
        )
    largest = torch.zeros_like(kept)
    largest[kept] = torch.from_numpy(label == np.bincount(label[label >= 0]).argmax())
    removed = removed | (kept & ~largest)

    def pad(array: Tensor | None) -> Tensor | None:
        return array if array is None or config.multiple == 0 else pad_square(array, config.multiple)

    return replace(
        sample,
        rgb=None if sample.rgb is None else pad(sample.rgb * ~removed),
        xyz=pad(xyz * largest),
        valid=pad(largest),
        mask=pad(sample.mask),
    )
