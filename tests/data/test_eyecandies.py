import math

import numpy as np
import pytest
import torch
from PIL import Image

import mm3dad
from mm3dad.data import eyecandies
from mm3dad.data.eyecandies import Eyecandies
from mm3dad.errors import ConfigError, DataError

SIZE = 48


def write_candy(folder, stem, defective=False, seed=0):
    """One raw sample: a camera that looks at a floor, a block on it; the numbers are those of a small Eyecandies scene."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    v, u = np.mgrid[:SIZE, :SIZE]
    block = (abs(u - SIZE / 2) < 10) & (abs(v - SIZE / 2) < 10)
    depth = 1.5 + 0.004 * (SIZE - v) - 0.2 * block + random.normal(0, 1e-4, block.shape)
    low, high = float(depth.min()), float(depth.max())
    Image.fromarray(np.round((depth - low) / (high - low) * 65535).astype(np.uint16)).save(folder / f"{stem}_depth.png")
    (folder / f"{stem}_info_depth.yaml").write_text(f"normalization:\n  max: {high}\n  min: {low}\n")
    angle = 0.4
    pose = np.array([[1, 0, 0, 0.1], [0, math.cos(angle), -math.sin(angle), 0.2], [0, math.sin(angle), math.cos(angle), 0.3], [0, 0, 0, 1]])
    np.savetxt(folder / f"{stem}_pose.txt", pose)
    for light in (0, 4):
        Image.fromarray((np.where(block[..., None], 200, 20) + light + np.zeros((1, 1, 3))).astype(np.uint8)).save(
            folder / f"{stem}_image_{light}.png"
        )
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[20:24, 20:24] = 255 * defective
    Image.fromarray(mask).save(folder / f"{stem}_mask.png")
    return depth, pose


def write_candies(root, category="Confetto"):
    for split, count in (("train", 3), ("val", 1), ("test_public", 3)):
        for index in range(count):
            stem = f"{index:03d}" if split == "train" else f"{index:02d}"
            write_candy(root / category / split / "data", stem, defective=split == "test_public" and index == 1, seed=index)
    return root


def slow_points(depth, pose):
    inverse = np.linalg.inv(pose)
    height, width = depth.shape
    points = np.zeros((height, width, 3))
    for v in range(height):
        for u in range(width):
            d = depth[v, u]
            points[v, u] = (inverse @ [(u - width / 2) * d / 711.11, (v - height / 2) * d / 711.11, d, 1])[:3]
    return points


def slow_m3dm(points):
    flat = points.reshape(-1, 3)
    top, bottom = flat[points.shape[1] // 2], flat[-(points.shape[1] // 2)]
    dz, dy = top[1] - bottom[1], top[2] - bottom[2]
    norm = math.hypot(dz, dy)
    c, s = dy / norm, dz / norm
    rotation = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    origin = np.array([0, bottom[1], bottom[2]])
    out = np.zeros_like(flat)
    for i, p in enumerate(flat):
        q = rotation @ (p - origin)
        if q[1] > -0.02 or q[2] > 1.8 or abs(q[0]) > 1:
            continue
        back = rotation.T @ q + origin
        out[i] = back[[0, 2, 1]] * [0.1, -0.1, 0.1]
    return out.reshape(points.shape)


def test_points_equal_the_published_loop():
    random = np.random.default_rng(0)
    depth = random.uniform(1, 3, (12, 16))
    pose = np.eye(4)
    pose[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0]
    pose[:3, 3] = random.normal(size=3)
    points = eyecandies.unproject(depth, pose)
    assert np.allclose(points, slow_points(depth, pose), atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_m3dm_variant_equals_the_published_steps(seed):
    points = np.random.default_rng(seed).normal(0, 1, (12, 16, 3))
    got, expected = eyecandies.convert_m3dm(points), slow_m3dm(points)
    assert np.allclose(got, expected, atol=1e-12)
    assert 0 < (got != 0).any(-1).sum() < 12 * 16


def test_m3dm_floor_without_length_is_an_error():
    with pytest.raises(DataError, match="floor line"):
        eyecandies.convert_m3dm(np.ones((4, 4, 3)))


def make_two_blobs():
    points = np.random.default_rng(0).normal(0, 0.005, (10, 20, 3))
    points[:, 10:, 0] += 1
    points[0, 0] = (5, 5, 5)
    brightness = np.zeros((10, 20))
    return points, brightness


def test_musc_variant_keeps_the_brightest_cluster():
    points, brightness = make_two_blobs()
    brightness[3, 15] = 1
    kept = (eyecandies.convert_musc(points, brightness, "Confetto") != 0).any(-1)
    assert kept[:, 10:].mean() > 0.9
    assert not kept[:, :10].any()
    tied = (eyecandies.convert_musc(points, brightness * 0, "Confetto") != 0).any(-1)
    assert tied[:, :10].any() != tied[:, 10:].any()


def test_musc_variant_cuts_the_floor_but_for_three_categories():
    points, brightness = make_two_blobs()
    points[:, 10:, 1] += 0.5
    points[0, 0] = points[0, 1]
    points[:, 10:, 1] = 0.5
    brightness[3, 15] = 1
    cut = (eyecandies.convert_musc(points, brightness, "Confetto") != 0).any(-1)
    assert not cut[:, 10:].any()
    assert cut[:, :10].any()
    assert (eyecandies.convert_musc(points, brightness, "GummyBear") != 0).any(-1)[:, 10:].all()


def test_raw_tree_opens_in_both_variants(tmp_path):
    write_candies(tmp_path)
    assert Eyecandies.categories(tmp_path) == ["Confetto"]
    depth, pose = write_candy(tmp_path / "again", "00")
    for variant, light in (("m3dm", 4), ("musc", 0)):
        train = mm3dad.open_dataset("eyecandies", tmp_path, "Confetto", "train", variant=variant)
        assert (len(train), train.modalities) == (3, ("rgb", "xyz"))
        sample = train[0]
        assert float(sample.rgb.min()) == pytest.approx((20 + light) / 255)
        assert 0 < float(sample.valid.float().mean()) < 1
        assert (sample.label, bool(sample.mask.any())) == (0, False)
    expected = slow_m3dm(slow_points(depth, pose))
    got = mm3dad.open_dataset("eyecandies", tmp_path, "Confetto", "train")[0].xyz.permute(1, 2, 0).numpy()
    assert np.abs(got - expected).max() < 1e-5


def test_splits_labels_and_masks(tmp_path):
    write_candies(tmp_path)
    assert len(mm3dad.open_dataset("eyecandies", tmp_path, "Confetto", "validation")) == 1
    test = mm3dad.open_dataset("eyecandies", tmp_path, "Confetto", "test")
    assert [record.id for record in test.records] == ["test/bad/01", "test/good/00", "test/good/02"]
    assert int(test[0].mask.sum()) == 16
    assert test[1].label == 0


def test_rgb_alone_needs_no_depth(tmp_path):
    write_candies(tmp_path)
    for path in tmp_path.rglob("*_depth.png"):
        path.unlink()
    train = mm3dad.open_dataset("eyecandies", tmp_path, "Confetto", "train")
    assert train.modalities == ("rgb",)
    assert train[0].xyz is None


def test_bad_input(tmp_path):
    write_candies(tmp_path)
    with pytest.raises(ConfigError, match="unknown variant 'm3d'.*did you mean 'm3dm'"):
        mm3dad.open_dataset("eyecandies", tmp_path, "Confetto", "train", variant="m3d")
    train = mm3dad.open_dataset("eyecandies", tmp_path, "Confetto", "train")
    data = tmp_path / "Confetto/train/data"
    for name, texts in {
        "000_info_depth.yaml": ["", "normalization: [", "other: 1", "normalization: {min: 3, max: 1}", "- 1"],
        "000_pose.txt": ["1 2 3", "a b", "0 0 0 0\n" * 4],
    }.items():
        whole = (data / name).read_text()
        for text in texts:
            (data / name).write_text(text)
            with pytest.raises(DataError, match=name):
                train[0]
        (data / name).write_text(whole)
    (data / "001_pose.txt").unlink()
    with pytest.raises(DataError, match=r"lacks pose\.txt beside it"):
        mm3dad.open_dataset("eyecandies", tmp_path, "Confetto", "train")[1]
    (data / "002_image_0.png").unlink()
    with pytest.raises(DataError, match="rgb for 2 of 3"):
        mm3dad.open_dataset("eyecandies", tmp_path, "Confetto", "train", variant="musc")
    assert torch.is_tensor(train[0].xyz)
