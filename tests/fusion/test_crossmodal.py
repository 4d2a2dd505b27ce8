"""Cross-modal enhancement: the laws it promises, and the published form against plain steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.fusion import enhance, enhance_published
from mm3dad.fusion.crossmodal import stable_order


def sample(seed, patches=6, centers=15, K=5, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    first = torch.rand((patches, K), generator=random, dtype=dtype)
    second = torch.rand((centers, K), generator=random, dtype=dtype) * 2
    return first, second, torch.randint(0, patches, (centers,), generator=random)


def reduced(scores, fraction=0.3):
    count = max(1, int(fraction * scores.shape[1]))
    return scores.sort(dim=1).values[:, :count].mean(1)


def enhance_by_hand(first, second, patch):
    def trust(row):
        return 1.0 if len(row) < 3 else float(row.mean() / (row.mean() + row.std())) if row.mean() > 0 else 0.0

    lifted_2d, lifted_3d = first.clone(), second.clone()
    for p in range(len(first)):
        seen = second[patch == p].mean(0) if (patch == p).any() else torch.zeros_like(first[p])
        lifted_2d[p] = (first[p] + torch.maximum(first[p], trust(seen) * seen)) / 2
    for g, p in enumerate(patch.tolist()):
        lifted_3d[g] = (second[g] + torch.maximum(second[g], trust(first[p]) * first[p])) / 2
    return reduced(lifted_2d), reduced(lifted_3d)


@given(st.integers(0, 9999), st.integers(1, 12))
def test_enhance_equals_plain_steps(seed, K):
    first, second, patch = sample(seed, K=K)
    for found, expected in zip(enhance(first, second, patch), enhance_by_hand(first, second, patch), strict=True):
        assert torch.allclose(found, expected, atol=1e-12)


@given(st.integers(0, 9999), st.integers(1, 12))
def test_no_score_is_lowered_and_none_exceeds_the_stronger(seed, K):
    first, second, patch = sample(seed, K=K)
    found_2d, found_3d = enhance(first, second, patch)
    assert (found_2d >= reduced(first) - 1e-12).all() and (found_3d >= reduced(second) - 1e-12).all()
    assert float(torch.cat([found_2d, found_3d]).max()) <= float(torch.cat([first.flatten(), second.flatten()]).max()) + 1e-12


def test_a_patch_without_points_is_left_as_it_is():
    first, second, patch = sample(0)
    patch[patch == 2] = 3
    assert torch.equal(enhance(first, second, patch)[0][2], reduced(first)[2])
    alone, none = enhance(first, second[:0], patch[:0])
    assert torch.equal(alone, reduced(first)) and none.shape == (0,)


def test_a_defect_seen_by_one_modality_stays_and_lifts_the_other_by_half():
    first, second = torch.zeros(4, 5), torch.zeros(4, 5)
    patch = torch.arange(4)
    first[1] = 8.0
    found_2d, found_3d = enhance(first, second, patch)
    assert found_2d.tolist() == [0, 8, 0, 0] and found_3d.tolist() == [0, 4, 0, 0]
    found_2d, found_3d = enhance(second, first, patch)
    assert found_2d.tolist() == [0, 4, 0, 0] and found_3d.tolist() == [0, 8, 0, 0]


def test_only_what_the_normal_samples_agree_on_is_borrowed_in_full():
    calm, unsure = torch.full((1, 4), 4.0), torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    zeros, patch = torch.zeros(1, 4), torch.tensor([0])
    assert enhance(zeros, calm, patch, fraction=1)[0].item() == 2.0
    assert 0 < enhance(zeros, unsure, patch, fraction=1)[0].item() < 1.4


def test_fewer_than_three_samples_switch_confidence_off():
    patch = torch.tensor([0])
    assert enhance(torch.zeros(1, 2), torch.tensor([[2.0, 6.0]]), patch)[0].item() == 1.0
    assert enhance(torch.zeros(1, 1), torch.tensor([[6.0]]), patch)[0].item() == 3.0


def test_constant_and_zero_scores():
    first, second, patch = torch.ones(3, 4), torch.ones(5, 4), torch.tensor([0, 0, 1, 2, 2])
    assert all(torch.equal(found, torch.ones(len(found))) for found in enhance(first, second, patch))
    assert all(torch.equal(found, torch.zeros(len(found))) for found in enhance(first * 0, second * 0, patch))


def test_dtypes_follow_their_modality():
    first, second, patch = sample(1)
    found_2d, found_3d = enhance(first.float(), second, patch)
    assert found_2d.dtype == torch.float32 and found_3d.dtype == torch.float64


def published_by_hand(first, second, patch):
    def ranks(source, target):
        result = np.empty(target.size)
        result[np.argsort(target.ravel(), kind="stable")] = np.sort(source.ravel())
        return result.reshape(target.shape)

    A, B, patch = first.numpy(), second.numpy(), patch.numpy()
    has = np.array([(patch == p).any() for p in range(len(A))])
    A_x = np.stack([B[patch == p].mean(0) if has[p] else np.zeros(A.shape[1]) for p in range(len(A))])
    B_x = A[patch]
    c2 = 1 - ranks(A.std(1, ddof=1), A_x.std(1, ddof=1))
    c3 = 1 - ranks(B.std(1, ddof=1), B_x.std(1, ddof=1))
    B_x = ranks(B, B_x)
    A_x[has] = ranks(A[has], A_x[has])
    A_x, B_x = np.maximum(A, A_x) * c2[:, None], np.maximum(B, B_x) * c3[:, None]
    return (A + ranks(A, A_x)) / 2, (B + ranks(B, B_x)) / 2


@given(st.integers(0, 9999), st.integers(2, 8), st.integers(1, 20))
def test_published_form_equals_plain_steps(seed, K, centers):
    first, second, patch = sample(seed, centers=centers, K=K)
    for found, expected in zip(enhance_published(first, second, patch), published_by_hand(first, second, patch), strict=True):
        assert np.allclose(found.numpy(), expected, atol=1e-12)


def test_published_form_leaves_its_input_alone():
    first, second, patch = sample(3)
    copies = first.clone(), second.clone()
    enhance_published(first, second, patch)
    assert torch.equal(first, copies[0]) and torch.equal(second, copies[1])


@pytest.mark.parametrize("function", [enhance, enhance_published])
def test_errors(function):
    first, second, patch = sample(0)
    for wrong in ((first[:, :4], second, patch), (first, second[:9], patch), (first, second, patch.int()), (first, second, patch[None])):
        with pytest.raises(ShapeError, match="fit together"):
            function(*wrong)
    for index in (-1, len(first)):
        with pytest.raises(ShapeError, match=r"0 \.\. 5"):
            function(first, second, torch.full_like(patch, index))
    with pytest.raises(ShapeError, match=r"\(P, K\)"):
        function(first[0], second, patch)
    with pytest.raises(ShapeError):
        function(first[:, :0], second[:, :0], patch)
    with pytest.raises(DataError, match="finite"):
        function(first * float("nan"), second, patch)


def test_errors_of_one_form():
    first, second, patch = sample(0)
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="fraction"):
            enhance(first, second, patch, fraction)
    for wrong in ((first[:, :1], second[:, :1], patch), (first, second[:0], patch[:0])):
        with pytest.raises(ShapeError, match="K >= 2 samples and G >= 1"):
            enhance_published(*wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fast_order_is_the_stable_one(dtype):
    random = torch.Generator().manual_seed(0)
    for values in (
        torch.randn(1000, generator=random, dtype=dtype).round(decimals=1),
        torch.tensor([0.0, -0.0, 1e-38, -1e-38, 3e38, -3e38, 0.0], dtype=dtype),
        torch.zeros(5, dtype=dtype),
        torch.ones(1, dtype=dtype),
    ):
        assert torch.equal(stable_order(values), values.sort(stable=True).indices)
