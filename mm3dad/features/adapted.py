"""Point features of a part alone, for extractors that are adapted to it (GLFM)."""

from __future__ import annotations

import torch
from torch import Tensor

from mm3dad.errors import DataError
from mm3dad.features.points import describe_groups, group_points, scale_groups, spread_to_points, thin_points
from mm3dad.nets.point_transformer import DescriptorTransformer, PointTransformer
from mm3dad.ops import farthest_point_sample, nearest_neighbors, three_interpolate
from mm3dad.types import Sample

Extractor = PointTransformer | DescriptorTransformer


def take_part(sample: Sample, part: Tensor, most: int, least: int) -> Tensor:
    """Take the points (N, 3) of a part, metres, thinned to at most `most`.

    Args:
        sample: with xyz.
        part: (H, W) bool.
        most, least: numbers of points.
    Raises:
        DataError: fewer points than `least`.
    """
    assert sample.xyz is not None
    points = thin_points(sample.xyz, part, most)[0] if bool(part.any()) else sample.xyz.new_zeros(0, 3)
    if len(points) < least:
        raise DataError(
            f"sample {sample.meta.id!r} has {len(points)} valid points on the part, fewer than one group of {least}; "
            "lower group_size or check the sensor for missing points"
        )
    return points


def read_cloud_groups(points: Tensor, net: Extractor, centers: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Group a cloud by its nearest neighbours, and prepare what an extractor reads of the groups.

    Args:
        points: (N, 3) float32, metres.
        net: the extractor: of points, or of FPFH statistics.
        centers, size: groups wanted, and points in each.
    Returns:
        input of the groups, (G, size, 3) or (G, C), their centres (G, 3) in the unit sphere, and the centres' numbers (G,) int64.
    """
    groups = group_points(points, torch.arange(len(points)), centers, size, grow=False)
    offsets, middle = scale_groups(groups)
    return describe_groups(groups) if isinstance(net, DescriptorTransformer) else offsets, middle, groups.center


def regroup_features(points: Tensor, centers: Tensor, features: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Carry features of centres to all points, and average them over the nearest points of spread-out centres.

    Source: GLFM (trained sheet, 1.3), whose second centres are the first ones again.

    Args:
        points: (N, 3) floating, metres.
        centers: (G, 3), metres, the places of `features` (G, C).
        count, size: regions wanted, at most N, and points in each, clamped to N.
    Returns:
        the regions' middle points (count,) int64 and their features (count, C).
    """
    middle = farthest_point_sample(points, min(count, len(points)))
    near = nearest_neighbors(points[middle], points, min(size, len(points)))[1]
    return middle, three_interpolate(points, centers, features)[near].mean(1)


def spread_to_part(values: Tensor, centers: Tensor, sample: Sample, part: Tensor) -> Tensor:
    """Carry one value per region (G,) to the pixels of the part (H, W) by the nearest three centres; 0 elsewhere."""
    assert sample.xyz is not None
    found = torch.zeros(sample.size)
    found[part] = spread_to_points(values[:, None], centers, sample.xyz.permute(1, 2, 0)[part])[:, 0].float()
    return found
