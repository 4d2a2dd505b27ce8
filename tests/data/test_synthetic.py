"""The synthetic data: layout, repeatability, geometry, what is visible where, and that nothing but the defect tells."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from sklearn.metrics import roc_auc_score

from mm3dad.data.synthetic import CATEGORIES, DEFECTS, write_dataset
from mm3dad.data.synthetic._fields import draw_even, smooth_noise
from mm3dad.data.synthetic.defects import VARIANTS
from mm3dad.data.synthetic.scene import make_scan
from mm3dad.errors import ConfigError, DataError, Mm3dadError

SMALL = {"train": 2, "validation": 1, "good": 2, "defect": 1}


def _digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The default test split of all categories, at a small picture size."""
    return write_dataset(tmp_path_factory.mktemp("synthetic") / "tree", size=80, counts={"train": 0, "validation": 0})


@pytest.fixture(scope="module")
def entries(tree):
    return json.loads((tree / "manifest.json").read_text())["samples"]


def test_layout_is_that_of_mvtec_3d_ad(tmp_path):
    root = write_dataset(tmp_path / "tree", ["cookie"], size=64, counts=SMALL, workers=1)
    assert sorted(path.name for path in (root / "cookie").iterdir()) == ["calibration", "test", "train", "validation"]
    assert sorted(path.name for path in (root / "cookie" / "test").iterdir()) == sorted([*DEFECTS, "good"])
    assert not (root / "cookie" / "train" / "good" / "gt").exists()
    for folder in (root / "cookie" / "test").iterdir():
        rgb = Image.open(folder / "rgb" / "000.png")
        xyz = tifffile.imread(folder / "xyz" / "000.tiff")
        gt = np.asarray(Image.open(folder / "gt" / "000.png"))
        assert rgb.mode == "RGB" and rgb.size == (64, 64)
        assert xyz.shape == (64, 64, 3) and xyz.dtype == np.float32
        assert gt.dtype == np.uint8 and gt.shape == (64, 64)
        assert set(np.unique(gt)) == ({0} if folder.name == "good" else {0, 255})
    assert not list(root.rglob("*.part"))


def test_cloud_follows_the_written_camera(tmp_path):
    root = write_dataset(tmp_path / "tree", ["gasket"], size=128, counts=SMALL, workers=1)
    camera = json.loads((root / "gasket" / "calibration" / "camera_parameters.json").read_text())
    xyz = tifffile.imread(root / "gasket" / "train" / "good" / "xyz" / "000.tiff").astype(np.float64)
    valid = xyz[..., 2] > 0
    assert (xyz[~valid] == 0).all() and 0.85 < valid.mean() < 1
    v, u = np.nonzero(valid)
    x, y, z = xyz[valid].T
    assert 0.4 < z.min() < z.max() < 0.6
    np.testing.assert_allclose(camera["fx"] * x / z + camera["cx"], u, atol=1e-3)
    np.testing.assert_allclose(camera["fy"] * y / z + camera["cy"], v, atol=1e-3)
    # the table: a tilted plane up to the sensor's noise, so that plane removal finds it
    edge = valid.copy()
    edge[8:-8, 8:-8] = False
    points = xyz[edge]
    plane = np.linalg.lstsq(np.c_[points[:, :2], np.ones(len(points))], points[:, 2], rcond=None)[0]
    assert np.std(points[:, 2] - points[:, :2] @ plane[:2] - plane[2]) < 2e-4
    assert 0.5 < np.degrees(np.arctan(np.hypot(*plane[:2]))) < 8


def test_same_arguments_same_bytes_whatever_the_workers_and_counts(tmp_path):
    first = write_dataset(tmp_path / "a", ["cookie", "potato"], seed=3, size=64, counts=SMALL, workers=1)
    second = write_dataset(tmp_path / "b", ["potato", "cookie"], seed=3, size=64, counts=SMALL, workers=2)
    assert _digest(first) == _digest(second)
    more = write_dataset(tmp_path / "c", ["potato"], seed=3, size=64, counts={**SMALL, "train": 3, "good": 3}, workers=1)
    one, other = _digest(first), _digest(more)
    shared = [name for name in one if name in other and name != "manifest.json"]
    assert len(shared) > 20 and all(one[name] == other[name] for name in shared)
    apart = make_scan("potato", "train", "good", 0, seed=4, size=64)
    assert not np.array_equal(apart.rgb, np.asarray(Image.open(first / "potato" / "train" / "good" / "rgb" / "000.png")))


def test_an_interrupted_run_is_completed_and_what_is_there_is_kept(tmp_path):
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise StopError

    out = tmp_path / "tree"
    with pytest.raises(StopError):
        write_dataset(out, ["gasket"], size=64, counts=SMALL, workers=1, progress=stop)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.tiff")}
    assert len(kept) == 6
    (out / "gasket" / "train" / "good" / "rgb" / "001.png").unlink()
    calls = []
    write_dataset(out, ["gasket"], size=64, counts=SMALL, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (5, 12) and calls[-1] == (12, 12)
    changed = [path for path, time in kept.items() if path.stat().st_mtime_ns != time]
    assert [path.name for path in changed] == ["001.tiff"]
    assert _digest(out) == _digest(write_dataset(tmp_path / "whole", ["gasket"], size=64, counts=SMALL, workers=1))


def test_a_worker_that_fails_ends_the_call_and_its_folder_can_be_completed(tmp_path, monkeypatch):
    import mm3dad.data.synthetic.write as module

    real = module.make_scan

    def fail(category, split, defect, index, seed, size):
        if defect == "hole":
            raise OSError(28, "No space left on device")
        return real(category, split, defect, index, seed, size)

    out = tmp_path / "tree"
    monkeypatch.setattr(module, "make_scan", fail)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(out, ["gasket"], size=64, counts=SMALL, workers=2)
    assert json.loads((out / "manifest.json").read_text())["samples"] and not list(out.rglob("*.part"))
    monkeypatch.undo()
    write_dataset(out, ["gasket"], size=64, counts=SMALL, workers=2)
    assert len(json.loads((out / "manifest.json").read_text())["samples"]) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ["cokie"]}, "unknown category 'cokie'; did you mean 'cookie'"),
        ({"categories": []}, "list of names"),
        ({"categories": "cookie"}, "list of names"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"size": 32}, "size must be a whole number from 64"),
        ({"size": 402}, "multiple of 4, got 402; use 400"),
        ({"counts": {"tests": 3}}, "unknown count 'tests'"),
        ({"counts": {"train": -1}}, r"counts\['train'\] must be"),
        ({"workers": 0}, "workers must be"),
    ],
)
def test_bad_arguments_are_one_line_errors(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        write_dataset(tmp_path / "tree", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "tree").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="not synthetic data"):
        write_dataset(tmp_path, ["cookie"], size=64)
    with pytest.raises(DataError, match="not synthetic data"):
        write_dataset(tmp_path / "note.txt", ["cookie"], size=64)
    out = write_dataset(tmp_path / "tree", ["cookie"], size=64, counts={**SMALL, "good": 0, "defect": 0}, workers=1)
    with pytest.raises(DataError, match="'seed': 0.*'seed': 1"):
        write_dataset(out, ["cookie"], seed=1, size=64)
    for text in ("[]", "{", '{"generator": "mm3dad.synthetic", "version": 1, "seed": 0, "size": 64, "samples": [3]}'):
        (out / "manifest.json").write_text(text)
        with pytest.raises(Mm3dadError):
            write_dataset(out, ["cookie"], size=64, counts=SMALL, workers=1)


@pytest.mark.parametrize("category", CATEGORIES)
def test_both_sizes_show_the_same_scene(category):
    kind = DEFECTS[CATEGORIES.index(category) % len(DEFECTS)]
    small, large = (make_scan(category, "test", kind, 0, size=size) for size in (96, 192))
    half = large.mask.reshape(96, 2, 96, 2).mean((1, 3)) > 0.5
    assert (half & small.mask).sum() > 0.6 * (half | small.mask).sum()
    assert np.abs(large.rgb.reshape(96, 2, 96, 2, 3).mean((1, 3)) - small.rgb).mean() < 6
    z = large.xyz[::2, ::2, 2], small.xyz[..., 2]
    both = (z[0] > 0) & (z[1] > 0)
    assert np.median(np.abs(z[0] - z[1])[both]) < 5e-4


@pytest.mark.parametrize("category", CATEGORIES)
def test_good_part_and_noise_do_not_depend_on_the_defect(category):
    """Outside its surroundings, a defect changes not one bit: colour-only defects leave the cloud as it was."""
    import mm3dad.data.synthetic.scene as scene

    for kind, index in (("stain", 0), ("contamination", 0), ("dent", 1)):
        scan = make_scan(category, "test", kind, index, size=96)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scene, "add_defect", lambda rng, part, kind, variant: part)
            bare = make_scan(category, "test", kind, index, size=96)
        assert not bare.mask.any() and scan.mask.any()
        changed = (scan.rgb != bare.rgb).any(-1)
        if VARIANTS[kind][index] == "rgb":
            assert np.array_equal(scan.xyz, bare.xyz)
            assert changed[scan.mask].mean() > 0.95
        else:
            moved = (scan.xyz != bare.xyz).any(-1)
            assert moved[scan.mask].mean() > 0.6
            assert np.abs(scan.rgb.astype(int) - bare.rgb)[scan.mask].mean() < 12
        rows, columns = np.nonzero(scan.mask)
        far = np.ones_like(changed)
        far[max(0, rows.min() - 24) : rows.max() + 25, max(0, columns.min() - 24) : columns.max() + 25] = False
        assert not changed[far].any()


def test_every_defect_has_a_mask_of_useful_size(entries):
    assert len(entries) == len(CATEGORIES) * (20 + 4 * len(DEFECTS))
    assert {entry["defect"] for entry in entries} == {"good", *DEFECTS}
    severity = np.asarray([entry["severity"] for entry in entries if entry["defect"] != "good"])
    assert severity.min() > 0.03 and severity.max() < 0.2 and 0.07 < np.median(severity) < 0.12


def test_shares_of_visibility_as_measured_on_the_renders(entries):
    """A perfect detector that sees one modality would reach about 0.86: the rest of the defects is not there for it."""
    seen = Counter(tuple(entry["visible"].values()) for entry in entries if entry["defect"] != "good")
    total = sum(seen.values())
    assert seen[(False, False)] <= 0.01 * total
    assert seen[(True, True)] >= 0.40 * total
    assert 0.26 * total <= seen[(True, False)] <= 0.33 * total
    assert 0.23 * total <= seen[(False, True)] <= 0.33 * total
    for entry in entries:
        if entry.get("variant") == "rgb":
            assert entry["xyz_contrast"] == 0
        elif entry.get("variant") == "both":
            assert entry["rgb_contrast"] > 1.2 and entry["xyz_contrast"] > 8
        elif entry.get("variant") == "xyz":
            assert entry["xyz_contrast"] > 8 and entry["rgb_contrast"] < 4


def test_trivial_statistics_do_not_give_a_defect_away(tree):
    """Mean colour, valid points, range of z and file sizes: image AUROC of each, in either direction."""
    table = []
    for category in CATEGORIES:
        labels, rows = [], []
        for path in sorted((tree / category / "test").glob("*/rgb/*.png")):
            cloud = Path(str(path).replace("/rgb/", "/xyz/")).with_suffix(".tiff")
            rgb, z = np.asarray(Image.open(path), float), tifffile.imread(cloud)[..., 2]
            rows.append([*rgb.mean((0, 1)), rgb.mean(), (z > 0).sum(), np.ptp(z[z > 0]), path.stat().st_size, cloud.stat().st_size])
            labels.append(path.parts[-3] != "good")
        table.append([roc_auc_score(labels, column) for column in np.asarray(rows).T])
    auroc = np.asarray(table)
    mean = auroc.mean(0)
    assert (np.maximum(mean, 1 - mean) < 0.56).all(), mean
    # one category has 20 good and 28 defective parts: an uninformative score strays by 0.085 (standard error)
    assert (np.maximum(auroc, 1 - auroc).mean(0) < 0.62).all(), auroc
    assert np.maximum(auroc, 1 - auroc).max() < 0.5 + 3 * 0.085


def test_sensor_misses_points_in_shadows_and_keeps_the_rest():
    scan = make_scan("deep_rim", "test", "good", 0, size=192)
    valid = scan.xyz[..., 2] > 0
    middle = valid[64:128, 48:144]
    assert valid.mean() > 0.85 and middle.mean() < valid[:24].mean()


def test_noise_grows_with_the_slope():
    from mm3dad.data.synthetic.render import View
    from mm3dad.data.synthetic.sensor import DEPTH_NOISE, depth_noise

    facing = np.cos(np.radians(np.asarray([[0, 30, 60, 75]], np.float32)))
    filler = np.zeros_like(facing)
    noise = depth_noise(View(filler, facing, filler, filler > 0, filler, filler, filler > 0))[0]
    assert noise[0] == pytest.approx(DEPTH_NOISE, rel=1e-3)
    assert (np.diff(noise) > 0).all() and noise[2] > 3 * noise[0]


def test_even_numbers_are_uniform_and_evenly_spread():
    values = np.asarray([list(draw_even((1, "x"), i, tuple("abcdefghi")).values()) for i in range(60)])
    assert values.min() >= 0 and values.max() < 1
    assert np.abs(values.mean(0) - 0.5).max() < 0.06
    assert np.abs(np.corrcoef(values.T) - np.eye(9)).max() < 0.5
    assert draw_even((1, "x"), 7, ("a", "b")) == draw_even((1, "x"), 7, ("a", "b"))


def test_smooth_noise_is_standard_and_the_same_at_every_size():
    small, large = (smooth_noise(np.random.default_rng(0), n, 40) for n in (200, 400))
    assert abs(float(small.std()) - 1) < 0.1
    np.testing.assert_allclose(large.reshape(200, 2, 200, 2).mean((1, 3)), small, atol=0.08)


@pytest.mark.parametrize(
    ("category", "defect", "index", "frozen"),
    [
        ("assembled_part", "feature", 1, (70.712, 473.250, 0.9608, 31)),
        ("cable", "hole", 0, (37.917, 485.375, 0.9555, 47)),
        ("cookie", "good", 3, (69.259, 473.756, 0.9773, 0)),
        ("deep_rim", "cut", 1, (63.024, 493.823, 0.9082, 30)),
        ("gasket", "stain", 2, (48.458, 499.178, 0.9774, 112)),
        ("potato", "dent", 0, (50.334, 496.813, 0.9555, 66)),
        ("textured_sheet", "contamination", 1, (109.313, 506.086, 0.9723, 68)),
        ("turned_part", "bump", 2, (56.271, 501.276, 0.9535, 83)),
    ],
)
def test_the_generator_is_frozen(category, defect, index, frozen):
    """A change of these numbers needs a new VERSION and new figures in docs/synthetic.md."""
    scan = make_scan(category, "test", defect, index, seed=0, size=96)
    z = scan.xyz[..., 2]
    got = (scan.rgb.mean(), 1000 * z[z > 0].mean(), (z > 0).mean(), scan.mask.sum())
    assert got == pytest.approx(frozen, rel=2e-3, abs=0.02)
