from __future__ import annotations

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from mm3dad.errors import DataError
from mm3dad.types import Meta, Prediction, Sample
from mm3dad.view.page3d import pack_scene, thin_grid, write_cloud_page
from mm3dad.view.scene import build_scene
from tests.view.parts import check_offline, make_map, make_sample


def decode(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_page_has_every_control_and_needs_no_network(tmp_path, sample):
    path = write_cloud_page(tmp_path / "a.html", sample, Prediction(4.5, make_map(sample), {"xyz_map": make_map(sample)}, threshold=2.0))
    page = check_offline(path.read_text(encoding="utf-8"))
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert {"scene", "layers", "size", "threshold", "above", "info", "fallback", "data", "reset"} <= ids
    assert "plate / test/dent/000" in page.words and "score 4.5" in page.words and "WebGL" in page.words
    assert page.all("img")[0]["src"].startswith("data:image/jpeg")
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page.raw, re.S)[1])
    assert [layer["name"] for layer in data["layers"]] == ["RGB", "height", "normals", "curvature", "score", "score, 3D", "ground truth"]
    assert data["threshold"] == 2.0


def test_packed_numbers_come_back(sample):
    scores = make_map(sample)
    scene = build_scene(sample, scores)
    packed = pack_scene(scene)
    count = packed["count"]
    assert count == int(scene.valid.sum())
    position = decode(packed["position"], "<u2").reshape(count, 3) * np.array(packed["step"]) + packed["origin"]
    assert np.abs(position.T - scene.xyz[:, scene.valid]).max() < 2e-6
    layers = {layer["name"]: layer for layer in packed["layers"]}
    layer = layers["score"]
    values = layer["first"] + decode(layer["values"], "<u2") / 65535 * (layer["last"] - layer["first"])
    assert np.abs(values - scores.numpy()[scene.valid]).max() < 1e-4
    assert (decode(layers["ground truth"]["values"], "u1") == scene.mask[scene.valid]).all()
    assert np.abs(decode(layers["RGB"]["values"], "u1").reshape(count, 3).T / 255 - scene.rgb[:, scene.valid]).max() < 0.0021
    bits = np.unpackbits(decode(packed["measured"], "u1"))[: scene.valid.size].reshape(scene.size)
    assert (bits == scene.valid).all()
    normals = decode(packed["normals"], "u1").reshape(count, 3) / 127.5 - 1
    assert np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 0.02 and "values" not in layers["normals"]


def test_a_large_cloud_is_thinned_below_three_megabytes(tmp_path):
    size = 800
    y, x = torch.meshgrid(torch.linspace(0, 0.1, size), torch.linspace(0, 0.1, size), indexing="ij")
    scores = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    big = Sample(scores.expand(3, -1, -1).contiguous(), torch.stack([x, y, 1 + x * y]), mask=scores > 0.99)
    path = write_cloud_page(tmp_path / "a.html", big, {"map": scores, "rgb_map": scores, "xyz_map": scores})
    assert 2_000_000 < path.stat().st_size < 3_000_000


def test_thinning_names_the_pixels_that_it_keeps(sample):
    scene = build_scene(sample)
    rows, columns = thin_grid(scene, 300)
    assert 150 < scene.valid[np.ix_(rows, columns)].sum() <= 300
    assert rows.tolist() == [int((i + 0.5) * 40 / len(rows)) for i in range(len(rows))] and columns[0] >= 0 and columns[-1] < 40


def test_a_cloud_that_every_thinner_grid_misses_is_an_error(sample):
    scene = build_scene(sample)
    valid = np.zeros_like(scene.valid)
    valid[0, :3] = True
    with pytest.raises(DataError, match="thinned"):
        thin_grid(dataclasses.replace(scene, valid=valid), 1)


@pytest.mark.parametrize("count", [1, 2])
def test_few_points(tmp_path, count):
    xyz = torch.zeros(3, 5, 5)
    xyz[:, 2, :count] = torch.arange(1.0, count + 1)
    check_offline(write_cloud_page(tmp_path / "a.html", Sample(xyz=xyz), torch.zeros(5, 5)).read_text())


def test_points_without_a_grid_and_lost_scores(tmp_path, sample):
    scores = make_map(sample).reshape(1, -1)
    scores[0, :5] = float("nan")
    flat = Sample(xyz=sample.xyz.reshape(3, 1, -1), meta=Meta(organised=False))
    check_offline(write_cloud_page(tmp_path / "a.html", flat, scores).read_text())


def test_titles_are_escaped_and_data_cannot_end_the_script(tmp_path):
    bad = "</script><img src=x>"
    one = make_sample(name=bad)
    page = check_offline(write_cloud_page(tmp_path / "a.html", one, {bad: make_map(one)}, title=bad).read_text())
    assert bad in page.words and len(page.all("img")) == 1 and len(page.all("script")) == 2


def test_no_cloud_is_an_error_that_names_the_cure(tmp_path, sample):
    for broken in (Sample(rgb=sample.rgb), Sample(xyz=torch.zeros(3, 4, 4))):
        with pytest.raises(DataError, match="--png"):
            write_cloud_page(tmp_path / "a.html", broken)
    assert not (tmp_path / "a.html").exists()
