"""Published numbers of MuSc-V2's point grouping, aggregation and interpolation (golden file musc)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mm3dad.features.aggregate import aggregate_map, aggregate_surface
from mm3dad.ops import iterative_group, three_interpolate

# The published aggregation runs in half precision: 11 bits, and a sum of some 25 roundings.
HALF = {"rtol": 2e-3, "atol": 5e-4}


@pytest.fixture(scope="module")
def musc(golden):
    return {key: torch.from_numpy(value) for key, value in golden("musc").items() if value.ndim}


def test_groups_as_sets(musc):
    groups = iterative_group(musc["ipg_xyz"], musc["ipg_center_idx"], size=musc["ipg_group_idx"].shape[1])
    found = [sorted(set(row)) for row in groups.index.tolist()]
    assert found == [sorted(set(row)) for row in musc["ipg_group_idx"].tolist()]


def test_curvature(musc):
    groups = iterative_group(musc["ipg_xyz"], musc["ipg_center_idx"], size=musc["ipg_group_idx"].shape[1])
    np.testing.assert_allclose(groups.curvature, musc["ipg_curvature"], rtol=1e-4, atol=1e-6)


def test_aggregated_map(musc):
    tokens, expected = musc["snamd2d_in"], musc["snamd2d_out"]
    side = math.isqrt(tokens.shape[1])
    for layer in range(tokens.shape[2]):
        maps = tokens[:, :, layer].transpose(1, 2).unflatten(2, (side, side))
        found = aggregate_map(maps).flatten(2).transpose(1, 2)
        np.testing.assert_allclose(found, expected[:, :, layer], **HALF)


def test_aggregated_surface(musc):
    tokens, expected = musc["snamd3d_in"], musc["snamd3d_out"]
    for cloud, layer in np.ndindex(tokens.shape[0], tokens.shape[2]):
        centers = musc["snamd3d_center"][cloud].T
        found = aggregate_surface(tokens[cloud, :, layer], centers, musc["snamd3d_curvature"])
        np.testing.assert_allclose(found, expected[cloud, :, layer], **HALF)


def test_interpolation(musc):
    found = three_interpolate(musc["interp_points"], musc["interp_centers"], musc["interp_feat"])
    np.testing.assert_allclose(found, musc["interp_out"], rtol=1e-3, atol=1e-3)
