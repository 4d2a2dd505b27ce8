"""A verb that was killed or met a full disk gives the undisturbed result when called again; two runs never share a folder.

`tests/long/kill.py` kills for longer.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from functools import partial

import pytest

from mm3dad import files
from mm3dad.errors import StorageError
from mm3dad.run._lock import LOCK, held
from mm3dad.run.prepare import prepare_synthetic
from tests.long.kill import CATEGORIES, COUNTS, digest, kill_often, make_verbs

OTHER = "import sys, time; from mm3dad.run._lock import held\nwith held(sys.argv[1]): print('in', flush=True); time.sleep(60)"
# What `held` does to its file, without the seconds that the package takes to load.
HOLD = "import fcntl, os, sys, time; lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX)\n"
HOLD += "lock.write(str(os.getpid())); lock.flush(); print('in', flush=True); time.sleep(60)"
VERBS = ["prepare synthetic", "synthesize", "prepare", "fit", "evaluate", "benchmark", "train glfm"]


@pytest.fixture(scope="module")
def verbs(tmp_path_factory):
    return make_verbs(tmp_path_factory.mktemp("inputs"), "toy", {})


@pytest.mark.parametrize("name", VERBS)
def test_a_killed_verb_resumes_to_the_same_result(verbs, name, tmp_path):
    found = kill_often(name, verbs[name], tmp_path, 3)
    assert found["kills"] == 3 and not found["faults"]


def stop(capsys, verb, out, words):
    """Call a verb that must end with a StorageError of these words and leave no half-written file."""
    with pytest.raises((StorageError, RuntimeError)) as caught:
        verb(out)
    said = str(caught.value) if caught.type is StorageError else capsys.readouterr().err  # `benchmark` is called as the command
    assert re.search(words, said), said
    assert not [path for path in out.rglob("*") if path.suffix == ".part" or path.name == LOCK]


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_stopped_by_a_full_disk_resumes_to_the_same_result(verbs, name, tmp_path, monkeypatch, capsys):
    plain, calls = os.fsync, []
    monkeypatch.setattr(files.os, "fsync", lambda handle: plain(handle) or calls.append(handle))
    verbs[name](tmp_path / "whole")
    room = len(calls) // 2

    def fill(handle):
        if len(calls) >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        calls.append(plain(handle))

    calls.clear()
    monkeypatch.setattr(files.os, "fsync", fill)
    stop(capsys, verbs[name], tmp_path / "out", "cannot write .*No space left on device; free some space")
    monkeypatch.setattr(files.os, "fsync", plain)
    verbs[name](tmp_path / "out")
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


@pytest.mark.parametrize("name", VERBS)
def test_a_read_only_folder_is_refused(verbs, name, tmp_path, monkeypatch, capsys):
    out, plain = tmp_path / "out", {"open": os.open, "mkdir": os.mkdir}
    out.mkdir()

    def refuse(call, path, *rest, **place):  # as the kernel does on a read-only mount, whoever asks; permissions do not stop root
        if str(path).startswith(str(out)) and not os.path.exists(path) and (call == "mkdir" or rest[0] & os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return plain[call](path, *rest, **place)

    for call in plain:
        monkeypatch.setattr(os, call, partial(refuse, call))
    stop(capsys, verbs[name], out, "cannot write .*Read-only file system; choose a folder that can be written")
    assert not list(out.iterdir())


@pytest.mark.parametrize("name", [name for name in VERBS if name != "benchmark"])  # which writes one file, whole
def test_a_folder_in_use_is_refused(verbs, name, tmp_path):
    used = tmp_path / "bolt" if name == "fit" else tmp_path  # each model has a folder of its own
    used.mkdir(exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(used / LOCK)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"in\n"
            with pytest.raises(StorageError, match=rf"in use by process {other.pid}"):
                verbs[name](tmp_path)
        finally:
            other.kill()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [used / LOCK]


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
