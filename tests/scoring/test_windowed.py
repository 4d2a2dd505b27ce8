"""Windowed cosine scores against a loop over patches, and the laws T1 to T6 of RAD (retrieval sheet, 2.4)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.fusion.layers import fuse_layers
from mm3dad.scoring import windowed
from mm3dad.scoring.windowed import windowed_scores


def draw(images=4, grid=(5, 6), channels=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    return torch.randn(cells, channels, generator=generator), torch.randn(images, cells, channels, generator=generator)


def slow_scores(patches, bank, grid, window):
    result = []
    for j, query in enumerate(patches):
        r, c = divmod(j, grid[1])
        near = [i for i in range(len(patches)) if window is None or (abs(i // grid[1] - r) <= window and abs(i % grid[1] - c) <= window)]
        rows = bank[:, near].reshape(-1, bank.shape[2]).double()
        result.append(1 - F.cosine_similarity(query.double()[None], rows, dim=1).max())
    return torch.stack(result)


@pytest.mark.parametrize("grid", [(5, 6), (1, 9), (7, 1), (1, 1)])
@pytest.mark.parametrize("window", [0, 1, 2, 30, None])
def test_equals_the_loop_over_patches(grid, window):
    patches, bank = draw(grid=grid)
    torch.testing.assert_close(
        windowed_scores(patches, bank, grid, window).double(), slow_scores(patches, bank, grid, window), atol=1e-6, rtol=0
    )


def test_blocks_do_not_change_the_scores(monkeypatch):
    patches, bank = draw()
    whole = windowed_scores(patches, bank, (5, 6), 1)
    monkeypatch.setattr(windowed, "BLOCK_VALUES", 1)
    assert torch.equal(windowed_scores(patches, bank, (5, 6), 1), whole)


def test_half_precision_stays_within_a_thousandth():
    patches, bank = draw(images=20, grid=(8, 8), channels=64)
    for window in (0, 1, None):
        exact = windowed_scores(patches, bank, (8, 8), window)
        assert float((windowed_scores(patches, bank.half(), (8, 8), window) - exact).abs().max()) < 1e-3


def test_t1_a_projection_on_the_span_of_the_candidates_is_never_farther():
    for seed in range(50):
        patches, bank = draw(images=3, channels=20, seed=seed)
        score = windowed_scores(patches, bank, (5, 6), 0)
        for j, unit in enumerate(F.normalize(patches.double(), dim=1)):
            span = torch.linalg.qr(bank[:, j].double().T).Q
            assert 0.5 * float((unit - span @ (span.T @ unit)).square().sum()) <= float(score[j]) + 1e-6


def test_t2_a_reconstruction_out_of_the_memory_is_never_nearer():
    patches, bank = draw()
    score = windowed_scores(patches, bank, (5, 6), 0)
    units, rows = F.normalize(patches, dim=1), F.normalize(bank, dim=2)
    for image in rows:
        assert bool((score <= 0.5 * (units - image).square().sum(1) + 1e-6).all())


def test_t3_scores_move_no_farther_than_patches():
    one, bank = draw()
    other = draw(seed=5)[0]
    gap = (windowed_scores(one, bank, (5, 6), 1) - windowed_scores(other, bank, (5, 6), 1)).abs()
    assert bool((gap <= (F.normalize(one, dim=1) - F.normalize(other, dim=1)).norm(dim=1) + 1e-6).all())


def test_t4_more_images_and_wider_windows_never_raise_a_score():
    patches, bank = draw(images=6)
    for smaller, larger in ((bank[:2], bank), (bank[:5], bank)):
        assert bool((windowed_scores(patches, larger, (5, 6), 1) <= windowed_scores(patches, smaller, (5, 6), 1) + 1e-6).all())
    previous = windowed_scores(patches, bank, (5, 6), 0)
    for window in (1, 2, 5, None):
        score = windowed_scores(patches, bank, (5, 6), window)
        assert bool((score <= previous + 1e-6).all())
        previous = score


def test_t5_an_image_of_the_bank_scores_zero():
    _, bank = draw()
    assert float(windowed_scores(bank[2], bank, (5, 6), 0).max()) < 1e-6


def test_t6_scores_lie_in_0_to_2_and_equal_layers_make_weights_irrelevant():
    patches, bank = draw()
    score = windowed_scores(patches, bank, (5, 6), 1)
    assert float(windowed_scores(patches, -patches[None], (5, 6), 0).min()) == pytest.approx(2)
    assert 0 <= float(score.min()) <= float(score.max()) <= 2
    torch.testing.assert_close(fuse_layers(torch.stack([score] * 3), (1, 5, 2)), score)


def test_zero_rows_and_duplicates_give_finite_scores():
    patches, bank = draw()
    patches[3], bank[:, 4] = 0, 0
    score = windowed_scores(patches, torch.cat([bank, bank]), (5, 6), 1)
    assert bool(score.isfinite().all()) and float(score[3]) == 1
    torch.testing.assert_close(score, windowed_scores(patches, bank, (5, 6), 1))


def test_wrong_input_is_explained():
    patches, bank = draw()
    for wrong in ((patches, bank, (5, 5)), (patches, bank[:, :-1], (5, 6)), (patches, bank[:0], (5, 6))):
        with pytest.raises(ShapeError, match="must lie on one grid"):
            windowed_scores(*wrong, 1)
    with pytest.raises(ConfigError, match="0 or more cells"):
        windowed_scores(patches, bank, (5, 6), -1)
    for weights in ((1, 2), (1, -1, 1), (0, 0, 0), (1, float("nan"), 1)):
        with pytest.raises(ConfigError, match="layer_weights must be 3 finite numbers"):
            fuse_layers(torch.zeros(3, 4), weights)
