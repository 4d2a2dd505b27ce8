"""Features kept on disk change no result, and every method that has the option reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.files import write_json
from tests.methods.parts import make_sample

SMALL = {"image_size": 64}
POINTS = {"centers": 32, "group_size": 16}
METHODS = {"rad": {}, "mrad": {}, "cif": {"point_side": 32} | POINTS, "muscv2": {"max_points": 600} | POINTS}
FILES = {"rad": 1, "mrad": 1, "cif": 2, "muscv2": 2}


def make_set(folder):
    found = []
    for number in range(4):
        write_json(folder / f"{number}.json", [number])
        sample = make_sample(number)
        mask = torch.zeros(sample.size, dtype=torch.bool)
        mask[:8, :8] = number % 2 == 1
        meta = replace(sample.meta, paths={"rgb": str(folder / f"{number}.json")})
        found.append(replace(sample, mask=mask, label=number % 2, meta=meta))
    return found


def run(name, samples, **options):
    detector = mm3dad.create(name, **SMALL, **METHODS[name], **options)
    detector.fit(samples)
    return detector.predict_all(samples) if name == "muscv2" else [detector.predict(sample) for sample in samples]


@pytest.mark.parametrize("name", METHODS)
def test_features_kept_on_disk_change_nothing(name, tmp_path):
    samples, folder = make_set(tmp_path), tmp_path / "cache"
    plain = run(name, samples)
    times = []
    for _ in range(2):
        for found, expected in zip(run(name, samples, feature_cache=str(folder)), plain, strict=True):
            assert found.score == expected.score and torch.equal(found.map, expected.map)
        times.append({path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")})
    assert times[0] == times[1] and len(times[0]) == FILES[name] * len(samples)


def test_methods_share_the_tokens_of_an_image(tmp_path):
    samples, folder = make_set(tmp_path), str(tmp_path / "cache")
    run("rad", samples, feature_cache=folder)
    run("mrad", samples, feature_cache=folder)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == len(samples)
