"""The same answer on another day: processes of their own, whose models and maps have equal hashes; other thread counts come close."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

METHODS = ("duet", "m3dm", "patchcore")
PROGRAM = """
import hashlib, json, sys
import mm3dad
from tests.methods.parts import SMALL, make_samples
said = {}
for name in sys.argv[2].split(","):
    known = {key: value for key, value in SMALL.items() if hasattr(mm3dad.create(name).config, key)}
    detector = mm3dad.create(name, **known).fit(make_samples(5))
    folder = detector.save(f"{sys.argv[1]}/{name}")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir())))
    predictions = [detector.predict(sample) for sample in (*make_samples(1, first=50), *make_samples(1, first=60, defect="both"))]
    for prediction in predictions:
        digest.update(prediction.map.numpy().tobytes())
    said[name] = {"hash": digest.hexdigest(), "scores": [prediction.score for prediction in predictions]}
print(json.dumps(said))
"""


def run(folder, threads, hash_seed):
    """What a process of its own says; hashes of text differ from process to process, and must not matter."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(hash_seed)}
    words = [sys.executable, "-c", PROGRAM, str(folder), ",".join(METHODS)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return run(tmp_path_factory.mktemp("first"), 1, 1)


def test_two_processes_have_equal_hashes(first, tmp_path):
    assert first.keys() == set(METHODS) and run(tmp_path, 1, 2) == first


def test_two_threads_come_close(first, tmp_path):
    for name, said in run(tmp_path, 2, 1).items():
        assert said["scores"] == pytest.approx(first[name]["scores"], rel=1e-5), name
