"""Laws of the hypergraphs (retrieval sheet, 1.9), and message passing against its dense definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize, one_hot

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.memory import messages
from mm3dad.memory.hypergraph import build_hypergraph, find_centroids, find_incidence, first_hyperedge, hyperedge_features
from mm3dad.memory.messages import cross_matches, pass_messages
from mm3dad.memory.structured import MISSED, HypergraphMemory, add_shot, hyperedge_quotas, one_center, sample_memory, search_hyperedges
from mm3dad.ops import nearest_neighbors


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def example(seed=0, N=30, A=20, C=6, K=3, dtype=torch.float64):
    """Patches in clusters, two thirds of them foreground, and a memory with ids that skip a number."""
    features = draw(N, C, seed=seed, dtype=dtype) + 4 * draw(K, C, seed=9, dtype=dtype)[torch.arange(N) % K]
    foreground = torch.arange(N) % 3 != 1
    graph = build_hypergraph(features, foreground, K)
    rows = draw(A, C, seed=seed + 1, dtype=dtype) + 4 * draw(K, C, seed=9, dtype=dtype)[torch.arange(A) % K]
    ids = torch.tensor([0, 2, 3])[torch.arange(A) % K]
    return features, foreground, graph, HypergraphMemory(rows, ids, draw(4, C, seed=5, dtype=dtype))


def dense_propagation(features, incidence, memory):
    """The (N + A)^2 matrix P of the sheet, formed as it is written there."""
    N, A = len(features), len(memory.rows)
    row, patch = cross_matches(features, memory.rows)
    cross = torch.zeros(N + A, N + A, dtype=features.dtype)
    for n in range(N):
        cross[n, n] = cross[N + row[n], n] = 1
    for a in range(A):
        cross[N + a, N + a] = cross[patch[a], N + a] = 1
    own = torch.block_diag(incidence.to(features.dtype), one_hot(memory.ids).to(features.dtype))
    H = torch.cat([own, cross], dim=1)
    size = H.sum(0)
    W = H @ torch.diag(torch.where(size > 0, 1 / size.clamp_min(1), 0.0)) @ H.T + torch.eye(N + A, dtype=features.dtype)
    D = W.sum(1).rsqrt()
    return D[:, None] * W * D[None]


@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.0])
def test_every_foreground_patch_has_a_hyperedge_and_no_background_patch(threshold):
    features, foreground, _, _ = example()
    incidence, best = find_incidence(features, find_centroids(features[foreground], 3), foreground, threshold)
    assert bool((incidence.any(1) == foreground).all())
    assert bool(((best >= 0) == foreground).all())
    assert bool(incidence[foreground].gather(1, best[foreground, None]).all())
    assert bool(((first_hyperedge(incidence) >= 0) == foreground).all())
    if threshold == 1.0:
        assert bool((incidence.sum(1) <= 1).all())


def test_one_centroid_and_equal_centroids_still_hold_their_patches():
    features = draw(8, 4)
    everything = torch.ones(8, dtype=torch.bool)
    for centroids in (features[:1], features[:1].repeat(3, 1)):
        incidence, best = find_incidence(features, centroids, everything)
        assert bool(incidence.any(1).all()) and bool((best == 0).all())


def test_centroids_of_clear_clusters_are_their_means():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]).double()
    rows = centers.repeat_interleave(20, 0) + 0.1 * draw(60, 2)
    for seed in range(5):
        found = find_centroids(rows, 3, seed)
        distance, index = nearest_neighbors(rows.view(3, 20, 2).mean(1), found, 1)
        assert float(distance.max()) < 1e-9 and sorted(index[:, 0].tolist()) == [0, 1, 2]


def test_fewer_different_features_than_centroids():
    assert find_centroids(torch.ones(5, 3), 4).tolist() == [[1.0, 1.0, 1.0]]
    assert len(find_centroids(torch.tensor([[0.0], [1.0], [0.0], [1.0]]), 4)) == 2
    graph = build_hypergraph(torch.ones(5, 3), torch.ones(5, dtype=torch.bool), 4)
    assert graph.incidence.shape == (5, 1) and graph.ids.tolist() == [0] * 5


def test_hyperedge_features_by_hand():
    features = torch.tensor([[1.0], [3.0], [8.0]])
    hard = torch.tensor([[1, 0], [1, 0], [0, 1]]).bool()
    assert hyperedge_features(features, hard).tolist() == [[2.0], [8.0]]
    soft = torch.tensor([[1, 1], [1, 0], [0, 0]]).bool()
    found = hyperedge_features(features, soft)
    assert found[0, 0].item() == pytest.approx((2**-0.5 + 3) / 2) and found[1, 0].item() == pytest.approx(2**-0.5)
    assert hyperedge_features(features, torch.zeros(3, 1, dtype=torch.bool)).tolist() == [[0.0]]


@pytest.mark.parametrize(("loops", "alpha"), [(1, 0.9), (3, 0.4), (2, 0.0), (0, 0.5)])
def test_message_passing_equals_the_dense_form(loops, alpha):
    features, _, graph, memory = example()
    P = dense_propagation(features, graph.incidence, memory)
    X = torch.cat([features, memory.rows])
    expected, power = torch.zeros_like(X), X
    for level in range(loops):
        expected += alpha * (1 - alpha) ** level * power
        power = P @ power
    expected += (1 - alpha) ** loops * power
    found = pass_messages(features, graph.incidence, memory, loops, alpha)
    assert torch.allclose(found, expected[: len(features)], atol=1e-9)


def test_the_propagation_is_symmetric_and_does_not_expand():
    features, _, graph, memory = example()
    P = dense_propagation(features, graph.incidence, memory)
    assert torch.equal(P, P.T) or torch.allclose(P, P.T, atol=1e-15)
    assert float(torch.linalg.eigvalsh(P).abs().max()) <= 1 + 1e-12
    assert not torch.allclose(P.sum(1), torch.ones(len(P), dtype=P.dtype), atol=1e-3)  # no convex average


def test_alpha_one_leaves_features_alone():
    features, _, graph, memory = example()
    assert torch.equal(pass_messages(features, graph.incidence, memory, 2, 1.0), features)


def test_blocks_of_rows_change_nothing(monkeypatch):
    features, _, _, memory = example()
    whole = cross_matches(features, memory.rows)
    monkeypatch.setattr(messages, "ROW_BLOCK", 7)
    assert all(torch.equal(a, b) for a, b in zip(cross_matches(features, memory.rows), whole, strict=True))
    cosine = normalize(features, dim=1) @ normalize(memory.rows, dim=1).T
    assert torch.equal(whole[0], cosine.argmax(1)) and torch.equal(whole[1], cosine.argmax(0))


@pytest.mark.parametrize("top", [1, 2, 99])
def test_guided_search_is_no_nearer_than_the_whole_memory(top):
    features, foreground, graph, memory = example()
    tidy = add_shot(None, memory.rows, memory.ids, memory.hyperedges)
    found = search_hyperedges(features, graph.ids, hyperedge_features(features, graph.incidence), tidy, top)
    nearest = nearest_neighbors(features, tidy.rows, 1)[0][:, 0]
    assert bool((found[foreground] >= nearest[foreground] - 1e-12).all()) and bool((found[~foreground] == 0).all())
    if top == 99:
        assert torch.allclose(found[foreground], nearest[foreground])


def test_a_hyperedge_without_rows():
    features, hyperedges = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    memory = HypergraphMemory(torch.tensor([[0.0, 1.0]]), torch.tensor([1]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    ids = torch.tensor([0])
    assert search_hyperedges(features, ids, hyperedges, memory, 1, MISSED).tolist() == [MISSED]
    # A score of a million says nothing of the patch; the nearest row of all does.
    assert search_hyperedges(features, ids, hyperedges, memory, 1).tolist() == pytest.approx([2**0.5])


def test_ids_keep_pointing_at_their_hyperedge():
    first = add_shot(None, torch.eye(3), torch.tensor([0, 2, 2]), torch.tensor([[1.0, 0, 0], [9.0, 9, 9], [0, 1.0, 1.0]]))
    assert first.ids.tolist() == [0, 1, 1] and first.hyperedges.tolist() == [[1, 0, 0], [0, 1, 1]]
    second = add_shot(first, torch.tensor([[0.0, 3.0, 0.0]]), torch.tensor([0]), torch.tensor([[0.0, 1.0, 0.5]]))
    assert second.ids.tolist() == [0, 1, 1, 1]
    means = torch.stack([second.rows[second.ids == edge].mean(0) for edge in range(2)])
    assert torch.allclose(second.hyperedges, means)
    published = add_shot(None, torch.eye(3), torch.tensor([0, 2, 2]), torch.ones(3, 3), tidy=False)
    assert published.ids.tolist() == [0, 2, 2] and len(published.hyperedges) == 3


def test_background_stays_out_of_the_memory():
    memory = add_shot(None, torch.eye(3), torch.tensor([-1, 0, -1]), torch.ones(1, 3))
    assert memory.rows.tolist() == [[0, 1, 0]]
    with pytest.raises(DataError, match="no patch of this sample is foreground"):
        add_shot(None, torch.eye(3), torch.full((3,), -1), torch.ones(1, 3))


@pytest.mark.parametrize("target", [1, 3, 7, 20, 500])
def test_the_memory_is_the_sum_of_its_quotas(target):
    ids = torch.tensor([0] * 14 + [1] * 5 + [2])
    memory = HypergraphMemory(draw(20, 4).float(), ids, torch.zeros(3, 4))
    quotas = hyperedge_quotas(ids, target)
    kept = sample_memory(memory, target, start=3)
    assert len(kept.rows) == sum(quotas.values()) and torch.bincount(kept.ids).tolist() == list(quotas.values())
    assert min(quotas.values()) >= 1 and kept.rows.dtype == torch.float16
    assert len(kept.rows.unique(dim=0)) == len(kept.rows)


def test_one_center_by_hand():
    assert one_center(torch.tensor([[0.0], [1.0], [5.0], [9.0]])).tolist() == [2]
    assert one_center(torch.zeros(1, 3)).tolist() == [0]


def test_errors():
    features, foreground, graph, memory = example()
    with pytest.raises(ShapeError, match="fit together"):
        find_incidence(features, features[:3, :2], foreground)
    with pytest.raises(ConfigError, match="threshold"):
        find_incidence(features, features[:3], foreground, 0.0)
    with pytest.raises(ShapeError, match="fit together"):
        pass_messages(features[:, :2], graph.incidence, memory)
    for loops, alpha in ((-1, 0.5), (1, 1.5)):
        with pytest.raises(ConfigError, match="loops"):
            pass_messages(features, graph.incidence, memory, loops, alpha)
    with pytest.raises(DataError, match="no patch is foreground"):
        build_hypergraph(features, torch.zeros_like(foreground), 3)
    with pytest.raises(ConfigError, match="count"):
        find_centroids(features, 0)
    with pytest.raises(ShapeError, match="foreground"):
        find_centroids(features[:0], 3)
