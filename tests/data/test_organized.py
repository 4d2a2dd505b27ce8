import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.data import organized
from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.types import Meta, Sample

CAMERA = (100.0, 120.0, 1.5, 2.0)


def test_from_depth_equals_the_pinhole_formula_pixel_by_pixel():
    depth = torch.randint(1, 2000, (5, 4)).to(torch.int32)
    xyz = organized.from_depth(depth, CAMERA, unit=0.001)
    for v in range(5):
        for u in range(4):
            z = float(depth[v, u]) * 0.001
            assert xyz[:, v, u].tolist() == pytest.approx([(u - 1.5) / 100 * z, (v - 2.0) / 120 * z, z], rel=1e-6)
    assert xyz.dtype == torch.float32


def test_from_depth_leaves_holes_at_zero():
    depth = torch.tensor([[0.0, float("nan"), float("inf"), -1.0, 1.0]])
    assert organized.from_depth(depth, CAMERA, 1.0).abs().sum(0)[0].gt(0).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("depth", "camera", "unit", "error"),
    [
        (torch.ones(3, 4, 4), CAMERA, 1.0, ShapeError),
        (torch.ones(4, 4), (0, 1, 0, 0), 1.0, ConfigError),
        (torch.ones(4, 4), (1, 1, 0), 1.0, ConfigError),
        (torch.ones(4, 4), CAMERA, 0.0, ConfigError),
        (torch.ones(4, 4), CAMERA, float("nan"), ConfigError),
    ],
)
def test_from_depth_refuses(depth, camera, unit, error):
    with pytest.raises(error, match="; "):
        organized.from_depth(depth, camera, unit)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50))
def test_resize_xyz_picks_pixels_and_never_mixes(height, width, h, w):
    xyz = torch.randn(3, height, width)
    xyz[:, torch.rand(height, width) < 0.3] = 0
    small, valid = organized.resize_xyz(xyz, (h, w))
    for r in range(h):
        for c in range(w):
            source = xyz[:, r * height // h, c * width // w]
            assert torch.equal(small[:, r, c], source)
            assert bool(valid[r, c]) == bool((source != 0).any())


def test_resize_mask_takes_the_same_pixels_as_xyz():
    mask = torch.rand(37, 53) > 0.5
    xyz = torch.where(mask, 1.0, 0.0).expand(3, -1, -1)
    assert torch.equal(organized.resize_mask(mask, (20, 64)), organized.resize_xyz(xyz, (20, 64))[1])


def test_resize_rgb_stays_in_range_and_keeps_constants():
    rgb = (torch.rand(3, 20, 30) > 0.5).float()
    small = organized.resize_rgb(rgb, (7, 45))
    assert small.shape == (3, 7, 45)
    assert float(small.min()) >= 0
    assert float(small.max()) <= 1
    assert torch.allclose(organized.resize_rgb(torch.full((3, 9, 9), 0.3), (4, 4)), torch.tensor(0.3))


def test_resize_sample_keeps_label_and_missing_modality():
    sample = Sample(rgb=torch.rand(3, 8, 8), mask=torch.ones(8, 8, dtype=torch.bool), label=1)
    small = organized.resize(sample, (4, 4))
    assert small.size == (4, 4)
    assert small.xyz is None
    assert small.label == 1
    assert bool(small.mask.all())
    with pytest.raises(DataError, match="without a grid"):
        organized.resize(Sample(xyz=torch.ones(3, 1, 9), meta=Meta(organised=False)), (2, 2))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 25))
def test_pad_square_keeps_the_content_in_the_middle(height, width, multiple):
    array = torch.rand(2, height, width) + 1
    padded = organized.pad_square(array, multiple)
    side = padded.shape[-1]
    assert padded.shape == (2, side, side)
    assert side % multiple == 0
    assert side - multiple < max(height, width) <= side
    top, left = (side - height) // 2, (side - width) // 2
    assert torch.equal(padded[:, top : top + height, left : left + width], array)
    assert float(padded.sum()) == pytest.approx(float(array.sum()), rel=1e-5)


def test_points_go_to_the_grid_and_back():
    xyz = torch.randn(3, 6, 5)
    valid = torch.rand(6, 5) > 0.4
    points, pixel = organized.to_points(xyz, valid)
    assert torch.equal(organized.to_grid(points, pixel, (6, 5)), xyz * valid)
    assert torch.equal(organized.to_grid(points[:, 0], pixel, (6, 5)), xyz[0] * valid)
    empty, none = organized.to_points(xyz, torch.zeros(6, 5, dtype=torch.bool))
    assert empty.shape == (0, 3)
    assert organized.to_grid(empty, none, (6, 5)).abs().sum() == 0


def test_extent_ignores_missing_points_and_millimetres_are_refused():
    xyz = torch.zeros(3, 2, 2)
    assert organized.extent(xyz) == 0
    xyz[:, 0, 0] = torch.tensor([0.1, 0.1, 0.5])
    xyz[:, 0, 1] = torch.tensor([0.3, 0.1, 0.5])
    xyz[:, 1, 1] = float("nan")
    assert organized.extent(xyz) == pytest.approx(0.2)
    organized.check_extent(xyz, "part.tiff")
    with pytest.raises(DataError, match=r"part\.tiff spans 200 m.*millimetres"):
        organized.check_extent(xyz * 1000, "part.tiff")


@pytest.mark.parametrize(
    "call",
    [
        lambda x: organized.resize_xyz(x[0], (2, 2)),
        lambda x: organized.resize_rgb(x[:2], (2, 2)),
        lambda x: organized.resize_mask(x, (2, 2)),
        lambda x: organized.resize_xyz(x, (0, 2)),
    ],
)
def test_resizing_refuses_wrong_shapes(call):
    with pytest.raises(ShapeError):
        call(torch.rand(3, 4, 4))
