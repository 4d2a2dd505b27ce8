"""Published numbers of CIF: hypergraphs, message passing, guided search, scores, memory (golden file cif)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm3dad.memory import select_coreset
from mm3dad.memory.hypergraph import find_incidence, first_hyperedge, hyperedge_features
from mm3dad.memory.messages import cross_matches, pass_messages
from mm3dad.memory.structured import MISSED, HypergraphMemory, add_shot, one_center, search_hyperedges
from mm3dad.scoring.maps import smooth_boxes, upsample_map
from mm3dad.scoring.nearest import nearest_scores, support_score

T4 = {"rtol": 1e-4, "atol": 1e-6}
SUMMED = {"rtol": 1e-4, "atol": 1e-5}
EXPANDED = {"rtol": 1e-4, "atol": 2e-3}  # the published distances come from |a|^2 + |b|^2 - 2ab in float32


@pytest.fixture(scope="module")
def cif(golden):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in golden("cif").items()}


def images(cif):
    for image in range(len(cif["rgb_features"])):
        rgb, xyz = (cif[f"{name}_features"][image].T.contiguous() for name in ("rgb", "xyz"))
        yield image, rgb, xyz, cif["mask"][image].flatten() > 0.5, cif["incidence"][image].bool()


def memory(cif, suffix=""):
    return HypergraphMemory(cif["memory_features"], cif[f"memory_id{suffix}"], cif[f"memory_hyperedge{suffix}"])


def passed(cif, image, setting="L1a09"):
    return cif[f"mp_features_{setting}"][image].T.contiguous(), cif[f"mp_hyperedge_{setting}"][image]


def test_incidence(cif):
    for image, rgb, _, foreground, _ in images(cif):
        found, best = find_incidence(rgb, cif["centroids"][image], foreground)
        assert torch.equal(found.float(), cif["incidence"][image])
        assert bool(found[foreground].gather(1, best[foreground, None]).all()) and bool((best[~foreground] == -1).all())


def test_hyperedge_features(cif):
    for image, rgb, xyz, _, incidence in images(cif):
        for name, features in (("rgb", rgb), ("xyz", xyz)):
            np.testing.assert_allclose(hyperedge_features(features, incidence), cif[f"hyperedge_{name}"][image], **T4)


def test_memory_hyperedges_are_class_means(cif):
    one_hot = torch.nn.functional.one_hot(cif["memory_id"], cif["memory_incidence"].shape[1])
    assert torch.equal(one_hot.float(), cif["memory_incidence"])
    np.testing.assert_allclose(hyperedge_features(cif["memory_features"], one_hot), cif["memory_hyperedge"], **T4)
    kept = torch.nn.functional.one_hot(cif["memory_id_gap"].unique(return_inverse=True)[1])
    np.testing.assert_allclose(hyperedge_features(cif["memory_features"], kept), cif["memory_hyperedge_gap"], **T4)


def test_joint_incidence(cif):
    own = cif["memory_incidence"]
    for image, rgb, _, _, incidence in images(cif):
        N, A = len(rgb), len(own)
        row, patch = cross_matches(rgb, cif["memory_features"])
        cross = torch.zeros(N + A, N + A)
        cross[torch.arange(N), torch.arange(N)] = cross[N + row, torch.arange(N)] = 1
        cross[N + torch.arange(A), N + torch.arange(A)] = cross[patch, N + torch.arange(A)] = 1
        assert torch.equal(cross, cif["cross_incidence"][image])
        padded = torch.block_diag(incidence.float(), own)
        assert torch.equal(torch.cat([padded, cross], dim=1), cif["joint_incidence"][image])


@pytest.mark.parametrize(("loops", "alpha", "setting"), [(1, 0.9, "L1a09"), (3, 0.4, "L3a04")])
def test_message_passing(cif, loops, alpha, setting):
    for image, rgb, _, _, incidence in images(cif):
        expected, hyperedges = passed(cif, image, setting)
        found = pass_messages(rgb, incidence, memory(cif), loops, alpha)
        np.testing.assert_allclose(found, expected, **SUMMED)
        np.testing.assert_allclose(hyperedge_features(found, incidence), hyperedges, **SUMMED)


def test_nearest_row(cif):
    for image, _, _, foreground, _ in images(cif):
        distance, index = nearest_scores(passed(cif, image)[0], cif["memory_features"])
        np.testing.assert_allclose(distance.where(foreground, torch.tensor(0.0)), cif["nn_score"][image], **EXPANDED)
        assert torch.equal(index.where(foreground, torch.tensor(0)), cif["nn_index"][image])


@pytest.mark.parametrize(
    ("suffix", "key"), [("", "hgms_score"), ("_gap", "hgms_score_gap_reference"), ("_gap", "hgms_score_gap_corrected")]
)
def test_guided_search(cif, suffix, key):
    known = memory(cif, suffix)
    if key.endswith("corrected"):
        known = HypergraphMemory(known.rows, known.ids.unique(return_inverse=True)[1], known.hyperedges)
    for image, _, _, _, incidence in images(cif):
        features, hyperedges = passed(cif, image)
        found = search_hyperedges(features, first_hyperedge(incidence), hyperedges, known, int(cif["hgms_topk"]), MISSED)
        np.testing.assert_allclose(found, cif[key][image], **EXPANDED)


def test_patch_and_image_scores(cif):
    for image, rgb, _, _, incidence in images(cif):
        features, hyperedges = passed(cif, image)
        distance, index = nearest_scores(features, cif["memory_features"])
        ids = first_hyperedge(incidence)
        within = search_hyperedges(features, ids, hyperedges, memory(cif), int(cif["hgms_topk"]), MISSED)
        scores = torch.where(ids >= 0, distance, 0.0) * within
        np.testing.assert_allclose(scores, cif["patch_score"][image], rtol=1e-3, atol=2e-3)
        found = support_score(rgb, cif["patch_score"][image], index, cif["memory_features"], int(cif["n_neighbors"]))
        np.testing.assert_allclose(found, cif["image_score"][image], **T4)


def test_pixel_map(cif):
    grid = cif["xyz_patch_score"].shape[1:]
    for image, *_ in images(cif):
        size = tuple(cif["pixel_map"].shape[1:])
        maps = [
            upsample_map(part.view(grid), size, align_corners=True) for part in (cif["patch_score"][image], cif["xyz_patch_score"][image])
        ]
        found = smooth_boxes((maps[0] * maps[1]) ** 1.5, zero_padded=True)
        np.testing.assert_allclose(found, cif["pixel_map"][image], **SUMMED)


def test_two_shots(cif):
    known = None
    for image, rgb, _, _, incidence in images(cif):
        known = add_shot(known, rgb, first_hyperedge(incidence), cif["hyperedge_rgb"][image], tidy=False)
    assert torch.equal(known.rows, cif["bank_rows"]) and torch.equal(known.ids, cif["bank_ids"])
    np.testing.assert_allclose(known.hyperedges, cif["bank_hyperedge"], **T4)


def test_choice_of_rows(cif):
    rows = cif["rgb_features"][0].T.contiguous()
    start, count = int(cif["kcenter_start"]), len(cif["kcenter_idx"])
    assert count == int(float(cif["kcenter_ratio"]) * len(rows))
    # The published choice leaves its random start out.
    assert select_coreset(rows, count + 1, start)[1:].tolist() == cif["kcenter_idx"].tolist()
    edges = [cif["bank_rows"][cif["bank_ids"] == edge] for edge in cif["bank_ids"].unique()]
    chosen = torch.cat([part[one_center(part)] for part in edges])
    np.testing.assert_allclose(chosen, cif["sample_one_rows"], **T4)


def test_every_key_is_looked_at(cif):
    assert cif.keys() == {
        "rgb_features", "xyz_features", "mask", "centroids", "incidence", "hyperedge_rgb", "hyperedge_xyz", "memory_features",
        "memory_id", "memory_id_gap", "mp_features_L1a09", "mp_hyperedge_L1a09", "mp_features_L3a04", "mp_hyperedge_L3a04",
        "cross_incidence", "memory_incidence", "joint_incidence", "hgms_topk", "memory_hyperedge", "hgms_score",
        "memory_hyperedge_gap", "hgms_score_gap_reference", "hgms_score_gap_corrected", "nn_score", "nn_index", "patch_score",
        "n_neighbors", "image_score", "xyz_patch_score", "pixel_map", "bank_rows", "bank_ids", "bank_hyperedge", "kcenter_start",
        "kcenter_idx", "kcenter_ratio", "sample_one_rows",
    }  # fmt: skip
