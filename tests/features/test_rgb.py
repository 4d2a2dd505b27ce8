"""Feature maps of images, from convolutional networks and transformers."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, WeightsError
from mm3dad.features.rgb import RGBExtractor, resize_image, stack_layers
from mm3dad.features.weights import TABLE, load_into, locate_file, read_checkpoint


@pytest.fixture(scope="module")
def lite():
    return RGBExtractor()


@pytest.fixture(scope="module")
def vit():
    return RGBExtractor("test_vit", layers=(1, -1), weights="random", seed=3)


def make_image(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def test_embedded_network_needs_no_network(lite):
    row = TABLE["efficientnet_lite0"]
    assert lite.description["sha256"] == row.sha256
    assert lite.layers == row.layers
    fine, coarse = lite.extract([make_image(64, 96)])[0]
    assert fine.shape == (40, 8, 12) and coarse.shape == (112, 4, 6)
    assert fine.dtype == torch.float32 and not fine.requires_grad


def test_normalisation_belongs_to_the_extractor(lite):
    image = make_image(64, 64)
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    load_into(net, read_checkpoint(locate_file(TABLE["efficientnet_lite0"])), "lite0")
    with torch.no_grad():
        expected = net.eval().forward_intermediates((image[None] - 0.5) / 0.5, indices=[2, 3], intermediates_only=True)
    for found, wanted in zip(lite.extract([image])[0], expected, strict=True):
        # Batch normalisation is folded into the convolutions, which rounds otherwise.
        torch.testing.assert_close(found, wanted[0], rtol=1e-4, atol=1e-4)


def test_random_weights_only_by_name_and_said(vit):
    assert vit.description == {"name": "random", "source": "random, seed 3", "sha256": "", "licence": "none"}
    image = make_image(64, 64)
    again, other = (RGBExtractor("test_vit", (1, -1), "random", seed=seed) for seed in (3, 4))
    assert torch.equal(vit.extract([image])[0][0], again.extract([image])[0][0])
    assert not torch.equal(vit.extract([image])[0][0], other.extract([image])[0][0])


def test_random_weights_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    RGBExtractor("test_vit", weights="random", seed=9)
    assert torch.equal(torch.rand(1), expected)


def test_a_transformer_takes_any_input_size(vit):
    assert vit.multiple == 16 and vit.layers == (1, 5)
    for size in ((64, 64), (32, 96), (160, 160)):
        for layer in vit.extract([make_image(*size)])[0]:
            assert layer.shape == (64, size[0] // 16, size[1] // 16)


@pytest.mark.parametrize("name", ["lite", "vit"])
def test_a_batch_is_its_images_bit_for_bit(request, name):
    extractor = request.getfixturevalue(name)
    images = [make_image(64, 64, 1), make_image(64, 96, 2), make_image(64, 64, 3)]
    together = extractor.extract(images)
    for image, maps in zip(images, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(maps, extractor.extract([image])[0], strict=True))
    assert extractor.extract([]) == []


def test_own_checkpoint_by_path(tmp_path, vit):
    net = timm.create_model("test_vit", pretrained=False)
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    mine = RGBExtractor("test_vit", (1, -1), str(tmp_path / "mine.pth"))
    assert mine.description["name"] == "mine.pth" and len(mine.description["sha256"]) == 64
    assert not torch.equal(mine.extract([make_image(64, 64)])[0][0], vit.extract([make_image(64, 64)])[0][0])
    headless = {key: value for key, value in net.state_dict().items() if not key.startswith("head.")}
    torch.save(headless, tmp_path / "dino.pth")  # as the DINO checkpoints are
    dino = RGBExtractor("test_vit", (1, -1), str(tmp_path / "dino.pth"))
    assert torch.equal(dino.extract([make_image(64, 64)])[0][1], mine.extract([make_image(64, 64)])[0][1])


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="found none"):
        RGBExtractor(weights=str(tmp_path / "missing.pth"))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="lacks 'blocks.0.0.bn1.bias'"):
        RGBExtractor(weights=str(tmp_path / "other.pth"))

    def offline(*args, pretrained=False, **options):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"cannot get pretrained weights of vit_base_patch8_224.dino from the hub \(OSError\)"):
        RGBExtractor("dino_vitb8")
    monkeypatch.setattr("mm3dad.features.rgb.locate_file", lambda row: None)
    with pytest.raises(WeightsError, match="not on this machine; install that package"):
        RGBExtractor()


def test_bad_names_layers_and_devices():
    with pytest.raises(ConfigError, match="unknown backbone 'efficientnet_lite9'; did you mean"):
        RGBExtractor("efficientnet_lite9")
    for layers in ((5,), (-6,)):
        with pytest.raises(ConfigError, match=rf"layers of efficientnet_lite0 must lie in -5..4, got {layers[0]}"):
            RGBExtractor(layers=layers)
    with pytest.raises(ConfigError, match="layers of test_vit must lie in -6..5"):
        RGBExtractor("test_vit", layers=(6,), weights="random")
    with pytest.raises(ConfigError, match="device 'toaster' is not usable here"):
        RGBExtractor(device="toaster")


@given(st.integers(20, 900), st.integers(20, 900), st.integers(32, 512))
def test_input_size_keeps_shape_and_pixels(lite, height, width, image_size):
    rows, columns = lite.input_size((height, width), image_size)
    assert rows % 32 == columns % 32 == 0 and rows >= 32 and columns >= 32
    scale = image_size / math.sqrt(height * width)
    assert abs(rows - height * scale) <= 32 and abs(columns - width * scale) <= 32


def test_resize_image_stays_in_range():
    image = (make_image(30, 50) > 0.5).float()
    resized = resize_image(image, (64, 96))
    assert resized.shape == (3, 64, 96) and 0 <= float(resized.min()) <= float(resized.max()) <= 1
    assert resize_image(image, (30, 50)) is image
    torch.testing.assert_close(resize_image(torch.full((3, 40, 40), 0.3), (16, 24)), torch.full((3, 16, 24), 0.3))


def test_stack_layers_joins_on_one_grid():
    fine, coarse = make_image(8, 8), torch.full((2, 4, 4), 7.0)
    stacked = stack_layers([fine, coarse], (8, 8))
    assert stacked.shape == (5, 8, 8)
    assert torch.equal(stacked[:3], fine) and bool((stacked[3:] == 7).all())


@pytest.mark.gpu
def test_half_precision_on_the_gpu_is_near_the_processor(lite):
    fast = RGBExtractor(device="cuda")
    images = [make_image(64, 64, seed) for seed in range(3)]
    for slow_maps, fast_maps in zip(lite.extract(images), fast.extract(images), strict=True):
        for slow, quick in zip(slow_maps, fast_maps, strict=True):
            torch.testing.assert_close(quick.cpu(), slow, rtol=0.05, atol=0.05 * float(slow.std()))
    assert fast.extract([]) == []
