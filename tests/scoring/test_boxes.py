from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ShapeError
from mm3dad.scoring.boxes import box_corners, suppress_boxes

SIZE = torch.tensor([2.0, 1.0, 0.5])


def overlap(one, other):
    """Intersection over union of two boxes of SIZE, axis by axis."""
    shared = 1.0
    for a, b, side in zip(one.tolist(), other.tolist(), SIZE.tolist(), strict=True):
        shared *= max(0.0, min(a, b) + side / 2 - (max(a, b) - side / 2))
    return shared / (2 * float(SIZE.prod()) - shared)


@pytest.mark.parametrize("limit", [0.0, 0.2])
def test_kept_boxes_are_the_best_ones_that_hardly_overlap(limit):
    generator = torch.Generator().manual_seed(0)
    centers, scores = 3 * torch.rand(60, 3, generator=generator), torch.rand(60, generator=generator)
    kept = suppress_boxes(centers, SIZE, scores, limit, most=60)
    wanted = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(centers[i], centers[j]) <= limit + 1e-6 for j in wanted):
            wanted.append(i)
    assert kept.tolist() == wanted and 1 < len(wanted) < 60
    assert suppress_boxes(centers, SIZE, scores, limit, most=2).tolist() == wanted[:2]


def test_none_one_and_the_same_place_twice():
    none = suppress_boxes(torch.zeros(0, 3), SIZE, torch.zeros(0))
    assert none.shape == (0,) and box_corners(torch.zeros(0, 3), SIZE, torch.eye(3)).shape == (0, 8, 3)
    assert suppress_boxes(torch.zeros(3, 3), SIZE, torch.ones(3)).tolist() == [0]
    assert suppress_boxes(torch.zeros(1, 3), SIZE, torch.ones(1), most=0).tolist() == []


def test_corners_lie_around_the_middle_along_the_axes():
    axes = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    corners = box_corners(torch.tensor([[10.0, 20, 30]]), SIZE, axes)[0]
    torch.testing.assert_close(corners.mean(0), torch.tensor([30.0, 10, 20]))
    torch.testing.assert_close(corners.amax(0) - corners.amin(0), torch.tensor([0.5, 2.0, 1.0]))


def test_bad_input():
    two, scores = torch.zeros(2, 3), torch.zeros(2)
    for centers, size, score in ((two[:, :2], SIZE, scores), (two, SIZE, torch.zeros(3)), (two, SIZE * 0, scores), (two, SIZE[:2], scores)):
        with pytest.raises(ShapeError, match="boxes need centers"):
            suppress_boxes(centers, size, score)
