"""A sample is checked when it is made, so that no method has to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import DataError, ShapeError
from mm3dad.types import Meta, Prediction, Sample


def rgb(height: int = 4, width: int = 5) -> torch.Tensor:
    return torch.linspace(0, 1, 3 * height * width).reshape(3, height, width)


def xyz(height: int = 4, width: int = 5) -> torch.Tensor:
    return torch.ones(3, height, width)


def test_both_modalities():
    sample = Sample(rgb=rgb(), xyz=xyz(), mask=torch.zeros(4, 5, dtype=torch.bool), label=0)
    assert sample.size == (4, 5)
    assert sample.modalities == ("rgb", "xyz")
    assert sample.valid.all() and sample.valid.dtype == torch.bool


def test_one_modality():
    image, cloud = Sample(rgb=rgb()), Sample(xyz=xyz(1, 9))
    assert (image.modalities, image.size, image.valid, image.xyz) == (("rgb",), (4, 5), None, None)
    assert (cloud.modalities, cloud.size, cloud.rgb) == (("xyz",), (1, 9), None)


def test_points_that_are_nan_infinite_or_zero_become_invalid_and_zero():
    points = xyz()
    points[:, 0, 0] = 0
    points[1, 0, 1] = math.nan
    points[2, 0, 2] = math.inf
    points[0, 0, 3] = -math.inf
    points[:2, 0, 4] = 0  # a point on the optical axis is measured
    sample = Sample(xyz=points)
    assert sample.valid[0].tolist() == [False, False, False, False, True]
    assert sample.valid[1:].all()
    assert (sample.xyz[:, ~sample.valid] == 0).all()
    assert sample.xyz.isfinite().all()
    assert points[1, 0, 1].isnan(), "the caller's tensor must stay as it was"


def test_given_valid_can_only_take_points_away():
    points, valid = xyz(), torch.ones(4, 5, dtype=torch.bool)
    points[:, 0, 0] = 0
    valid[3, 4] = False
    sample = Sample(xyz=points, valid=valid)
    assert not sample.valid[0, 0] and not sample.valid[3, 4] and sample.valid.sum() == 18
    assert (sample.xyz[:, 3, 4] == 0).all()


def test_cloud_without_any_measured_point_is_a_sample_without_valid_points():
    assert Sample(xyz=torch.zeros(3, 2, 2)).valid.sum() == 0


@given(st.lists(st.sampled_from([0.0, 1.0, -0.5, math.nan, math.inf]), min_size=3, max_size=30))
def test_making_a_sample_again_changes_nothing(values):
    count = len(values) // 3
    sample = Sample(xyz=torch.tensor(values[: 3 * count]).reshape(3, 1, count))
    again = Sample(xyz=sample.xyz, valid=sample.valid)
    assert torch.equal(again.xyz, sample.xyz)
    assert torch.equal(again.valid, sample.valid)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({}, DataError, "has neither rgb nor xyz; give at least one modality"),
        ({"rgb": rgb().permute(1, 2, 0)}, ShapeError, r"rgb must be a torch tensor \(3, H, W\) float32, got \(4, 5, 3\) float32"),
        ({"rgb": rgb()[None]}, ShapeError, r"got \(1, 3, 4, 5\) float32"),
        ({"rgb": rgb().double()}, ShapeError, r"got \(3, 4, 5\) float64"),
        ({"rgb": (rgb() * 255).byte()}, ShapeError, r"got \(3, 4, 5\) uint8; convert an 8-bit image"),
        ({"rgb": rgb().numpy()}, ShapeError, r"must be a torch tensor .*got \(3, 4, 5\) float32"),
        ({"rgb": [1, 2]}, ShapeError, "got list"),
        ({"rgb": torch.zeros(3, 0, 5)}, ShapeError, r"got \(3, 0, 5\) float32"),
        ({"rgb": rgb() * 255}, DataError, r"must lie in \[0, 1\], got \[0, 255\]; divide 8-bit values by 255"),
        ({"rgb": rgb() - 0.5}, DataError, r"got \[-0.5, 0.5\]"),
        ({"rgb": rgb() * math.nan}, DataError, r"got \[nan, nan\]; replace NaN"),
        ({"xyz": xyz()[:2]}, ShapeError, r"xyz must be a torch tensor \(3, H, W\) float32, got \(2, 4, 5\) float32"),
        ({"xyz": xyz().short()}, ShapeError, r"got \(3, 4, 5\) int16; for depth images use"),
        ({"xyz": np.ones((4, 5, 3), np.uint16)}, ShapeError, r"got \(4, 5, 3\) uint16"),
        ({"xyz": torch.zeros(3, 1, 0)}, ShapeError, r"got \(3, 1, 0\) float32"),
        ({"xyz": xyz(), "valid": torch.ones(4, 5)}, ShapeError, r"valid must be a torch tensor \(4, 5\) bool, got \(4, 5\) float32"),
        ({"xyz": xyz(), "valid": torch.ones(5, 4).bool()}, ShapeError, r"\(4, 5\) bool, got \(5, 4\) bool"),
        ({"rgb": rgb(), "valid": torch.ones(4, 5).bool()}, DataError, "has `valid` but no xyz; leave `valid` None"),
        ({"rgb": rgb(), "xyz": xyz(8, 10)}, DataError, r"must have one size, got \(4, 5\) and \(8, 10\); resample one"),
        ({"rgb": rgb(), "mask": torch.zeros(4, 5)}, ShapeError, r"mask must be .*bool, got \(4, 5\) float32; threshold"),
        ({"rgb": rgb(), "mask": torch.zeros(5, 5).bool()}, ShapeError, r"mask must be a torch tensor \(4, 5\) bool, got \(5, 5\) bool"),
        ({"rgb": rgb(), "label": 2}, DataError, "label of 'part 7' must be 0, 1 or None, got 2"),
        ({"rgb": rgb(), "label": "good"}, DataError, "got 'good'"),
    ],
)
def test_bad_sample_is_a_one_line_error(arguments, kind, message):
    with pytest.raises(kind, match=message) as caught:
        Sample(**arguments, meta=Meta(id="part 7"))
    assert "\n" not in str(caught.value)


def test_cures_name_functions_that_exist():
    from mm3dad.data import organized

    assert callable(organized.from_depth)
    assert callable(organized.resize)


def test_meta_and_prediction_defaults_are_not_shared():
    first, second = Prediction(score=1.0, map=torch.zeros(2, 2)), Prediction(score=2.0, map=torch.zeros(2, 2))
    first.parts["rgb_map"] = first.map
    assert second.parts == {} and second.threshold is None and second.is_anomaly is None and not second.calibrated
    assert Meta().paths is not Meta().paths
