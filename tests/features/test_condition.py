"""How a sample was recorded, in octaves: what each number follows, and what leaves it as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mm3dad.data import degrade
from mm3dad.features.condition import NAMES, describe_condition
from mm3dad.types import Sample
from tests.methods.parts import make_cloud, make_sample


def describe(sample, name):
    found = describe_condition(sample, name)
    assert found.shape == (len(NAMES[name]),) and found.dtype == torch.float32 and bool(found.isfinite().all())
    return dict(zip(NAMES[name], found.tolist(), strict=True))


@pytest.fixture
def sample():
    made = make_sample(1)
    return replace(made, rgb=made.rgb / 4)  # so that a longer exposure saturates nothing


def test_exposure_and_colour(sample):
    before, brighter, red = (describe(one, "rgb") for one in (sample, degrade.expose(sample, 1), degrade.warm(sample, 0.1)))
    assert brighter["brightness"] - before["brightness"] == pytest.approx(1, abs=1e-4)
    assert brighter["sharpness"] - before["sharpness"] == pytest.approx(1, abs=1e-4)
    assert brighter["redness"] == pytest.approx(before["redness"], abs=1e-4)
    assert red["redness"] - before["redness"] == pytest.approx(torch.tensor(1.1).log2().item(), abs=1e-4)
    assert red["blueness"] - before["blueness"] == pytest.approx(torch.tensor(0.9).log2().item(), abs=1e-4)


def test_blur_dulls_and_noise_sharpens(sample):
    dull, before, noisy = (
        describe(one, "rgb")["sharpness"] for one in (degrade.blur_picture(sample, 2), sample, degrade.add_picture_noise(sample, 0.05))
    )
    assert dull < before < noisy


def test_points_unit_and_noise(sample):
    before, fewer, larger, noisy = (
        describe(one, "xyz")
        for one in (sample, degrade.drop_points(sample, 0.5), degrade.scale_cloud(sample, 2), degrade.add_depth_noise(sample, 1e-3))
    )
    assert fewer["measured"] - before["measured"] == pytest.approx(-1, abs=1e-3)
    assert (larger["distance"] - before["distance"], larger["roughness"] - before["roughness"]) == pytest.approx((1, 1), abs=1e-3)
    assert noisy["roughness"] > before["roughness"] + 3 and noisy["distance"] == pytest.approx(before["distance"], abs=0.01)
    assert fewer["roughness"] == pytest.approx(before["roughness"], abs=0.3)


def test_a_turned_sensor_frame_changes_nothing(sample):
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    turned = Sample(xyz=torch.einsum("ab,bhw->ahw", turn, sample.xyz))
    for name, value in describe(turned, "xyz").items():
        assert value == pytest.approx(describe(replace(sample, rgb=None), "xyz")[name], abs=1e-3)


def test_edges():
    black = describe(Sample(rgb=torch.zeros(3, 1, 1)), "rgb")
    assert black == {"brightness": -24, "redness": 0, "blueness": 0, "sharpness": -24}
    assert describe(Sample(xyz=torch.zeros(3, 4, 4)), "xyz") == {"measured": -24, "distance": -24, "roughness": -24}
    one = torch.zeros(3, 2, 2)
    one[2, 0, 0] = 0.5
    assert describe(Sample(xyz=one), "xyz") == {"measured": -2, "distance": -1, "roughness": -24}
    cloud = make_cloud(3, count=256)
    found = describe(cloud, "xyz")
    assert found["measured"] == pytest.approx(cloud.valid.sum().log2().item()) and found["roughness"] == -24
