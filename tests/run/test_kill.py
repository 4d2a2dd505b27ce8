"""A killed verb, called again, gives the undisturbed result; two runs never share a folder. `tests/long/kill.py` kills for longer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mm3dad.errors import StorageError
from mm3dad.run._lock import held
from mm3dad.run.prepare import prepare_synthetic
from tests.long.kill import CATEGORIES, COUNTS, kill_often, make_verbs

OTHER = "import sys, time; from mm3dad.run._lock import held\nwith held(sys.argv[1]): print('in', flush=True); time.sleep(60)"


@pytest.fixture(scope="module")
def verbs(tmp_path_factory):
    return make_verbs(tmp_path_factory.mktemp("inputs"), "toy", {})


@pytest.mark.parametrize("name", ["synthesize", "prepare", "fit", "evaluate", "benchmark", "train glfm"])
def test_a_killed_verb_resumes_to_the_same_result(verbs, name, tmp_path):
    found = kill_often(name, verbs[name], tmp_path, 3)
    assert found["kills"] == 3 and not found["faults"]


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    with subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(StorageError, match=rf"in use by process {other.pid}; wait .* or choose another folder"), held(tmp_path):
            pass
        other.kill()
        other.wait()
    assert (tmp_path / ".lock").exists()
    with held(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_run_are_swept(tmp_path):
    (tmp_path / "maps").mkdir()
    for name in (".a.json.x1.part", "maps/.b.x2.part", "maps/.tmp0sJOIc", "b.part", "maps/c", ".tmp"):
        (tmp_path / name).touch()
    with held(tmp_path, "**"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".tmp", "b.part", "c"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"), held(tmp_path / "file" / "out"):
        pass


def test_synthesize_killed_before_its_manifest_leaves_nothing_behind(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".manifest.json.1234_abc.part").touch()
    prepare_synthetic(out, CATEGORIES[:1], size=64, counts=COUNTS, workers=1)
    assert not list(out.rglob("*.part"))
