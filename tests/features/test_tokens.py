"""Descriptors and patches of whole images: class token or mean, one grid, the published layouts."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import DataError, WeightsError
from mm3dad.features.tokens import TokenExtractor, Tokens, join_layers, smooth_tokens
from tests.methods.parts import make_sample


def test_embedded_backbone_has_one_grid_for_all_images():
    extractor = TokenExtractor("efficientnet_lite0", (), "default", 64)
    found = extractor.describe([make_sample(1), make_sample(2, size=(48, 96))])
    for tokens in found:
        assert tokens.grid == (8, 8) and [tuple(layer.shape) for layer in tokens.layers] == [(64, 40), (64, 112)]
        maps = extractor.extractor.extract([torch.rand(3, 64, 64)])[0]
        assert tokens.descriptor.shape == (len(maps[-1]),)
    assert extractor.weights[0]["licence"] == "Apache-2.0"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_transformers_give_class_and_patch_tokens_through_the_final_norm(name, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, pretrained=False, dynamic_img_size=True).eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    extractor = TokenExtractor(name, (3, -1), str(tmp_path / "weights.pth"), 64)
    tokens = extractor.describe([make_sample(1)])[0]
    image = (make_sample(1).rgb - extractor.extractor._mean) / extractor.extractor._std
    with torch.no_grad():
        expected = net.forward_features(image[None])[0]
    torch.testing.assert_close(tokens.descriptor, expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens.layers[-1], expected[net.num_prefix_tokens :], atol=1e-4, rtol=1e-4)
    assert tokens.grid == (4, 4) and len(tokens.layers) == 2 and tokens.layers[0].shape == tokens.layers[1].shape
    with pytest.raises(WeightsError, match="give weights of this architecture"):
        TokenExtractor("test_vit", (), str(tmp_path / "weights.pth"), 64)


def test_the_published_crop_keeps_the_middle():
    whole = TokenExtractor("efficientnet_lite0", (), "default", 64).describe([make_sample(1)])[0]
    cropped = TokenExtractor("efficientnet_lite0", (), "default", 64, crop=0.875).describe([make_sample(1)])[0]
    assert cropped.grid == whole.grid and not torch.equal(cropped.descriptor, whole.descriptor)


def test_a_sample_without_image_is_explained():
    with pytest.raises(DataError, match=r"has no rgb, .*; give the image"):
        TokenExtractor("efficientnet_lite0", (), "default", 64).describe([make_sample(1, modalities=("xyz",))])


def test_smoothing_counts_zeros_beyond_the_border():
    patches = torch.ones(25, 2)
    found = smooth_tokens(patches, (5, 5)).view(5, 5, 2)
    assert float(found[2, 2, 0]) == pytest.approx(1)
    assert float(found[0, 0, 0]) == pytest.approx((1 + 4 / 9 + 9 / 25) / 3)
    assert float(smooth_tokens(torch.ones(1, 2), (1, 1))[0, 0]) == pytest.approx((1 + 1 / 9 + 1 / 25) / 3)


def test_joined_layers_have_the_mean_cosine():
    one, other = ([torch.randn(4, 5), torch.randn(4, 3)] for _ in range(2))
    a, b = (join_layers(Tokens(torch.zeros(1), layers, (2, 2))) for layers in (one, other))
    mean = torch.stack([F.cosine_similarity(x, y) for x, y in zip(one, other, strict=True)]).mean(0)
    torch.testing.assert_close(F.cosine_similarity(a, b), mean)
