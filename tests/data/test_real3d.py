from __future__ import annotations

import numpy as np
import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError


def write_pcd(path, points):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = (
        f"VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {len(points)}\nHEIGHT 1\nPOINTS {len(points)}\nDATA ascii\n"
    )
    path.write_text(head + "\n".join(" ".join(f"{value:.6f}" for value in point) for point in points) + "\n")


def write_real3d(root, category="duck", count=300):
    """A sphere of 30 mm as prototypes, halves of it as tests, one of them with a dent."""
    rng = np.random.default_rng(0)

    def sphere():
        points = rng.normal(size=(count, 3))
        return 15 * points / np.linalg.norm(points, axis=1, keepdims=True)

    for number in range(3):
        write_pcd(root / category / "train" / f"{number}_template.pcd", sphere())
    for number in range(2):
        half = sphere()
        write_pcd(root / category / "test" / f"{number}_good_cut.pcd", half[half[:, 2] < 0])
    half = sphere()
    half = half[half[:, 2] < 0]
    dent = half[:, 0] > 10
    half[dent] *= 0.8
    write_pcd(root / category / "test" / "7_sink_cut.pcd", half)
    order = np.argsort(dent, kind="stable")  # normal points first, as published
    (root / category / "gt").mkdir()
    np.savetxt(root / category / "gt" / "7_sink_cut.txt", np.column_stack([half, dent])[order], fmt="%.6f")
    return half, dent


@pytest.fixture
def tree(tmp_path):
    return tmp_path, *write_real3d(tmp_path)


def test_splits_names_and_labels(tree):
    root, half, dent = tree
    train, test = (mm3dad.open_dataset("real3d", root, "duck", split) for split in ("train", "test"))
    assert [record.id for record in train.records] == [f"train/good/{n}_template" for n in range(3)]
    assert [(record.defect, record.label) for record in test.records] == [("good", 0), ("good", 0), ("sink", 1)]
    assert train.modalities == test.modalities == ("xyz",)
    sample = test[2]
    assert sample.xyz.shape == (3, 1, len(half)) and not sample.meta.organised and sample.rgb is None
    np.testing.assert_allclose(sample.xyz[:, 0].T, 0.001 * half, atol=1e-6)
    assert torch.equal(sample.mask[0], torch.from_numpy(dent))
    assert not bool(test[0].mask.any()) and not bool(train[0].mask.any())
    assert not len(mm3dad.open_dataset("real3d", root, "duck", "validation"))


def test_published_order_of_categories_and_the_unit(tree):
    root, half, _ = tree
    write_real3d(root, "car")
    write_real3d(root, "bolt")
    from mm3dad.data.real3d import Real3D

    assert Real3D.categories(root) == ["car", "duck", "bolt"]
    metres = mm3dad.open_dataset("real3d", root, "duck", "test", unit="cm")[2]
    np.testing.assert_allclose(metres.xyz[:, 0].T, 0.01 * half, atol=1e-6)
    with pytest.raises(ConfigError, match="unit must be positive"):
        mm3dad.open_dataset("real3d", root, "duck", "test", unit="parsec")
    with pytest.raises(DataError, match="spans 30 m|spans 29"):
        mm3dad.open_dataset("real3d", root, "duck", "train", unit="m")[0]


def test_labels_with_commas_and_damaged_ones(tree):
    root, _, dent = tree
    path = root / "duck" / "gt" / "7_sink_cut.txt"
    path.write_text(path.read_text().replace(" ", ","))
    assert int(mm3dad.open_dataset("real3d", root, "duck", "test")[2].mask.sum()) == int(dent.sum())
    for text in ("1 2 3\n", "1 2 3 x\n", "", "1 2 nan 0\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="7_sink_cut.txt"):
            mm3dad.open_dataset("real3d", root, "duck", "test")[2]


def test_a_missing_tree_and_a_category_without_training(tmp_path):
    with pytest.raises(DataError, match="expected categories in"):
        mm3dad.open_dataset("real3d", tmp_path, "duck", "train")
    (tmp_path / "duck" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="without training"):
        mm3dad.open_dataset("real3d", tmp_path, "duck", "train")
