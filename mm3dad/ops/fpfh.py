"""Fast point feature histograms: a description of local shape that needs no training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mm3dad.errors import ShapeError
from mm3dad.ops._blocks import map_blocks
from mm3dad.ops._check import check_integer, check_rows, check_same_device
from mm3dad.ops._native import native_kernels
from mm3dad.ops.neighbors import nearest_neighbors
from mm3dad.ops.normals import fit_planes

BINS = 11
# Points treated together: 128 x 99 float64 pairs take 0.1 MB, so the dozen arrays of a step stay in cache.
POINT_BLOCK = 128
# Cosines closer than this count as equal.
TIE = 1e-10


def fpfh(points: Tensor, normals: Tensor | None = None, normal_neighbors: int = 30, neighbors: int = 100) -> Tensor:
    """Describe each point by the histograms of the angles between its normal and its neighbours' normals.

    The definition is that of PCL and Open3D: three angles, 11 bins each summing to 100 (the point's own histogram), plus the mean of
    the neighbours' histograms weighted by 1 / squared distance; values reach 200. It does not change when the cloud and its normals
    are moved or turned, but flipping a normal does change it.
    Source: Rusu et al., Fast Point Feature Histograms for 3D Registration, ICRA 2009.

    Args:
        points: (N, 3) floating, metres.
        normals: (N, 3) unit normals; estimated and turned towards the origin if None.
        normal_neighbors: neighbourhood of the estimated normals, the point included; clamped to N.
        neighbors: neighbourhood of the histograms, the point included; clamped to N.
    Returns:
        (N, 33) dtype of `points`; zeros for a single point.
    Raises:
        ShapeError: a shape, dtype or device does not fit, or a value is not finite.
        ConfigError: `normal_neighbors` is below 3 or `neighbors` below 2.
    """
    check_rows("points", points, width=3)
    normal_neighbors = check_integer("normal_neighbors", normal_neighbors, 3)
    neighbors = check_integer("neighbors", neighbors, 2)
    if normals is not None:
        check_rows("normals", normals, width=3)
        check_same_device(points=points, normals=normals)
        if len(normals) != len(points):
            raise ShapeError(f"normals must have one row per point, got {len(normals)} rows for {len(points)} points")
    if len(points) == 1:
        return points.new_zeros((1, 3 * BINS))
    kernels = native_kernels(points.device.type, "fpfh")
    if kernels is None:
        return fpfh_reference(points, normals, normal_neighbors, neighbors)
    place = points.detach().double().contiguous()
    direction = place[:0] if normals is None else normals.detach().double().contiguous()
    most, wide = len(points), points.dtype == torch.float64
    values = kernels.fpfh(place, direction, min(normal_neighbors, most), min(neighbors, most), wide, torch.get_num_threads())
    return values.to(points.dtype)


def fpfh_reference(points: Tensor, normals: Tensor | None, normal_neighbors: int, neighbors: int) -> Tensor:
    """Do the same in torch."""
    place = points.detach().double()
    wanted = neighbors if normals is not None else max(neighbors, normal_neighbors)
    distances, table = nearest_neighbors(place, place, min(wanted, len(points)))
    direction = fit_planes(place, table[:, :normal_neighbors])[1] if normals is None else normals.detach().double()
    # The first neighbour is the point itself.
    distances, table = distances[:, 1:neighbors], table[:, 1:neighbors]
    columns = torch.cat([place, direction], dim=1).T.contiguous()
    own = map_blocks(lambda point, near: _histogram(point.T, _gather(columns, near)), POINT_BLOCK, columns.T, table)
    own = own.to(torch.promote_types(points.dtype, torch.float32))
    return (own + _mean_of_neighbors(own, distances, table)).to(points.dtype)


def _histogram(point: Tensor, other: Tensor) -> Tensor:
    """Count the pair angles of (6, n) points with their (6, n, K) neighbours; x y z and normal in the first dimension."""
    x, y, z = (other[axis] - point[axis].unsqueeze(1) for axis in range(3))
    length = (x * x + y * y + z * z).sqrt()
    scale = 1 / length.clamp_min(torch.finfo(length.dtype).tiny)
    x, y, z = x * scale, y * scale, z * scale
    a, b, c = (point[axis].unsqueeze(1) for axis in (3, 4, 5))
    p, q, r = other[3], other[4], other[5]
    cosine_point, cosine_other = x * a + y * b + z * c, x * p + y * q + z * r
    across = (y * c - z * b, z * a - x * c, x * b - y * a)
    across_other = (y * r - z * q, z * p - x * r, x * q - y * p)
    # The frame stands on the end whose normal is closer to the connecting line; exchanging the ends keeps the triple product.
    # Two points of one neighbourhood have one normal up to rounding: then the ends stay, lest rounding decide.
    swapped = cosine_point.abs() < cosine_other.abs() - TIE
    squared = torch.where(swapped, _square(across_other), _square(across))
    inverse = squared.clamp_min(torch.finfo(squared.dtype).tiny).rsqrt()
    aligned = a * p + b * q + c * r
    along = torch.where(
        swapped,
        cosine_other * aligned - cosine_point * _square((p, q, r)),
        cosine_other * _square((a, b, c)) - cosine_point * aligned,
    )
    theta = torch.atan2(along * inverse, aligned)
    alpha = (across[0] * p + across[1] * q + across[2] * r) * inverse
    phi = torch.where(swapped, -cosine_other, cosine_point)
    # Where no frame exists (same place, normal along the line) all three angles count as zero.
    defined = (length > 0) & (squared > 0)
    bins = torch.stack([(theta + math.pi) * (BINS / (2 * math.pi)), (alpha + 1) * (BINS / 2), (phi + 1) * (BINS / 2)])
    bins = torch.where(defined, bins, BINS / 2).floor_().clamp_(0, BINS - 1).long()
    count, number = length.shape
    row = torch.arange(count, device=length.device).unsqueeze(1) * (3 * BINS)
    shift = torch.arange(3, device=length.device).view(3, 1, 1) * BINS
    counted = torch.bincount((bins + shift + row).flatten(), minlength=count * 3 * BINS)
    return counted.view(count, 3 * BINS).to(length.dtype) * (100.0 / number)


def _gather(columns: Tensor, rows: Tensor) -> Tensor:
    return columns.index_select(1, rows.flatten()).view(len(columns), *rows.shape)


def _square(vector: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]


def _mean_of_neighbors(histograms: Tensor, distances: Tensor, table: Tensor) -> Tensor:
    weights = torch.where(distances > 0, distances.clamp_min(torch.finfo(distances.dtype).tiny).square().reciprocal(), 0.0)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(distances.dtype).tiny)
    return torch.nn.functional.embedding_bag(table, histograms, mode="sum", per_sample_weights=weights.to(histograms.dtype))
