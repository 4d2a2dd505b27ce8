import pytest
import torch

from benchmarks.peers.btf import project, thin_by_loop
from benchmarks.rows.duet import check_form, make_part
from mm3dad.memory import select_coreset
from mm3dad.types import Prediction


def test_the_loop_picks_the_exact_coreset():
    rows = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    assert thin_by_loop(rows, 12).tolist() == select_coreset(rows, 12, 0).tolist()


@pytest.mark.parametrize(("width", "kept"), [(33, 33), (400, 170)])
def test_projection_as_published(width, kept):
    # floor(4 ln n / (eps^2 / 2 - eps^3 / 3)) directions; rows with fewer columns stay as they are.
    rows = torch.randn(1000, width, generator=torch.Generator().manual_seed(0))
    found = project(rows)
    assert found.shape == (1000, kept) and found.is_contiguous()
    assert (width != kept) or torch.equal(found, rows)


@pytest.mark.parametrize(("points", "measured"), [(2000, 2000), (64 * 64, 64 * 64)])
def test_a_part_measures_the_points_asked_for(points, measured):
    part = make_part(0, points, 64)
    assert abs(int(part.valid.sum()) / measured - 1) < 0.03


def test_form_of_results():
    ours = Prediction(score=1.0, map=torch.ones(4, 4))
    assert check_form(ours, (2.0, torch.zeros(4, 4))) == 0
    assert check_form(ours, (float("nan"), torch.zeros(4, 4))) == 1
    assert check_form(ours, (2.0, torch.zeros(4, 5))) == 1
