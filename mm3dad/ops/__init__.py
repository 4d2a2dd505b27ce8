"""Geometry on points: torch tensors in, torch tensors out, same device; every op checks its input and is exact."""

from __future__ import annotations

from mm3dad.ops._native import describe_ops
from mm3dad.ops.cells import look_up, voxelize
from mm3dad.ops.farthest_point import farthest_point_sample
from mm3dad.ops.fpfh import fpfh
from mm3dad.ops.group import Groups, iterative_group
from mm3dad.ops.interpolate import three_interpolate
from mm3dad.ops.neighbors import nearest_neighbors
from mm3dad.ops.normals import estimate_normals
from mm3dad.ops.sparse_vote_conv import Votes, sparse_vote_conv
from mm3dad.ops.statistics import row_statistics

__all__ = [
    "Groups",
    "Votes",
    "describe_ops",
    "estimate_normals",
    "farthest_point_sample",
    "fpfh",
    "iterative_group",
    "look_up",
    "nearest_neighbors",
    "row_statistics",
    "sparse_vote_conv",
    "three_interpolate",
    "voxelize",
]
