"""A result is whole, as it was, or absent; and what is read is what was written."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm3dad import files
from mm3dad.errors import DataError, ModelError, StorageError

# Runs with a limit of 64 KiB per file: the kernel refuses the rest of a write, as a full disk does.
SMALL_DISK = """
{prepare}
import resource, sys
from mm3dad import errors, files
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    {write}
except errors.StorageError as error:
    print(error)
    sys.exit(error.exit_status)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_bytes_and_json_come_back(tmp_path):
    assert files.write_text(tmp_path / "a.txt", "µm\n").read_text(encoding="utf-8") == "µm\n"
    assert files.write_bytes(str(tmp_path / "b"), b"\0\1").read_bytes() == b"\0\1"
    assert files.read_json(files.write_json(tmp_path / "c.json", {"a": [1, 2.5, "x", None, True]})) == {"a": [1, 2.5, "x", None, True]}
    assert names(tmp_path) == ["a.txt", "b", "c.json"]


def test_missing_folders_are_made(tmp_path):
    assert files.write_text(tmp_path / "a" / "b" / "c.txt", "x").is_file()


def test_file_has_the_usual_permissions_and_not_the_private_ones_of_a_temporary_file(tmp_path):
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(files.write_text(tmp_path / "a", "x").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_failing_writer_leaves_the_old_file_and_no_other(tmp_path, error):
    path = files.write_text(tmp_path / "a.txt", "old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        files.write_with(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
def test_full_disk_at_any_step_is_a_storage_error_and_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = files.write_text(tmp_path / "a.txt", "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif step == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"cannot write .*a.txt: No space left on device; free some space") as caught:
        files.write_text(path, "new")
    assert caught.value.exit_status == 1
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize(
    ("prepare", "write"),
    [
        ("", "files.write_bytes({path!r}, bytes(1 << 20))"),
        ("import torch", "files.write_tensors({path!r}, {{'a': torch.zeros(1 << 18)}})"),
    ],
    ids=["bytes", "tensors"],
)
def test_kernel_that_refuses_a_write_leaves_the_old_file(tmp_path, prepare, write):
    path = files.write_text(tmp_path / "a", "old")
    code = SMALL_DISK.format(prepare=prepare, write=write.format(path=str(path)))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "cannot write" in result.stdout and "free some space" in result.stdout and result.stdout.count("\n") == 1
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    files.write_text(tmp_path / "file", "x")
    with pytest.raises(StorageError, match="choose a folder that can be written"):
        files.write_text(tmp_path / "file" / "a.txt", "x")


def test_writing_over_a_folder_is_a_storage_error(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        files.write_text(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]


def test_storage_error_of_an_inner_writer_passes_unchanged(tmp_path):
    def write(_: Path) -> None:
        raise StorageError("inner")

    with pytest.raises(StorageError, match="^inner$"):
        files.write_with(tmp_path / "a", write)


def test_json_has_null_for_what_json_lacks(tmp_path):
    value = {"nan": math.nan, "inf": [math.inf, -math.inf], "tuple": (1, 2), "path": Path("a/b"), 3: "key"}
    path = files.write_json(tmp_path / "a.json", value)
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    assert files.read_json(path) == {"nan": None, "inf": [None, None], "tuple": [1, 2], "path": "a/b", "3": "key"}


def test_value_that_is_no_json_leaves_the_old_file(tmp_path):
    path = files.write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path) == [1]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists))
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    assert files.read_json(files.write_json(path, value)) == json.loads(json.dumps(value))


def test_read_json_of_nothing(tmp_path):
    with pytest.raises(DataError, match=r"expected a JSON file at .*none.json, found none; check the path"):
        files.read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"[" * 100_000, b"PK\3\4"], ids=["empty", "cut", "binary", "deep", "zip"]
)
def test_read_json_of_a_damaged_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match="is not readable JSON") as caught:
        files.read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_read_json_of_a_folder(tmp_path):
    with pytest.raises(DataError, match="is not readable JSON"):
        files.read_json(tmp_path)


def test_sha256_is_the_published_one(tmp_path):
    path = files.write_bytes(tmp_path / "a", b"abc")
    assert files.sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot read .*: No such file or directory"):
        files.sha256_file(tmp_path / "none")


def test_tensors_come_back_bit_for_bit(tmp_path):
    tensors = {
        "view": torch.arange(12.0).reshape(3, 4).T,
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
        "half": torch.tensor([1.5], dtype=torch.float16),
        "gradient": torch.ones(2, requires_grad=True),
    }
    path = tmp_path / "a.safetensors"
    digest = files.write_tensors(path, tensors)
    assert digest == files.sha256_file(path)
    got = files.read_tensors(path, digest)
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[name], tensors[name]) and got[name].dtype == tensors[name].dtype for name in tensors)


def test_same_tensors_give_the_same_file(tmp_path):
    tensors = {"b": torch.arange(3), "a": torch.ones(2)}
    assert files.write_tensors(tmp_path / "1", tensors) == files.write_tensors(tmp_path / "2", tensors)


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    whole = torch.arange(6.0)
    files.write_tensors(tmp_path / "a", {"map": whole, "rgb_map": whole, "start": whole[:2], "end": whole[1:]})
    got = files.read_tensors(tmp_path / "a")
    assert torch.equal(got["rgb_map"], whole)
    assert got["start"].tolist() == [0, 1] and got["end"].tolist() == [1, 2, 3, 4, 5]


def test_missing_tensors(tmp_path):
    with pytest.raises(ModelError, match="expected tensors at .*, found none"):
        files.read_tensors(tmp_path / "none.safetensors")


def test_tensors_of_another_file_are_refused(tmp_path):
    digest = files.write_tensors(tmp_path / "a", {"a": torch.ones(2)})
    files.write_tensors(tmp_path / "b", {"a": torch.zeros(2)})
    with pytest.raises(ModelError, match=rf"has sha256 .*, expected {digest[:12]}.*damaged or foreign"):
        files.read_tensors(tmp_path / "b", digest)


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1])
def test_cut_tensors_are_refused_with_and_without_a_checksum(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    digest = files.write_tensors(path, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="is not a readable safetensors file") as caught:
        files.read_tensors(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="damaged or foreign"):
        files.read_tensors(path, digest)


def test_one_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    digest = files.write_tensors(path, {"a": torch.ones(100)})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged or foreign"):
        files.read_tensors(path, digest)


def test_lines_are_appended_whole_after_a_torn_one(tmp_path):
    path = tmp_path / "new" / "lines.jsonl"
    assert files.read_lines(path) == []
    files.append_line(path, {"a": math.nan})
    with path.open("a") as stream:
        stream.write('{"b": ')  # a process was killed here
    files.append_line(path, {"c": "ü\n"})
    assert files.read_lines(path) == [{"a": None}, {"c": "ü\n"}]
    assert path.read_bytes().count(b"\n") == 3
    with pytest.raises(StorageError, match="choose another file"):
        files.append_line(tmp_path, {})
    with pytest.raises(DataError, match="cannot read"):
        files.read_lines(tmp_path)


def test_yaml_is_read_as_plain_values_and_written_whole(tmp_path):
    value = {"set": {"gain": 2.5, "names": ["rgb", "xyz"]}, "none": None, "yes": True}
    assert files.read_yaml(files.write_yaml(tmp_path / "a.yaml", value)) == value
    assert files.read_yaml(files.write_yaml(tmp_path / "b.yaml", {"nan": float("nan"), "pair": (1, 2)})) == {"nan": None, "pair": [1, 2]}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.yaml", "b.yaml"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "not readable YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not readable YAML"),
        ("a: &x [1]\nb: [*x, *x]", r"reference, \*x"),
        ("a: 1\nb: 2\na: 3", "gives 'a' twice"),
        ("set:\n  gain: 1\n  gain: 2", "gives 'gain' twice"),
        ("[" * 100_000, "nests deeper"),
        ("a: \x00", "not readable YAML"),
    ],
)
def test_yaml_that_cannot_be_trusted_is_refused(tmp_path, text, part):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DataError, match=part):
        files.read_yaml(tmp_path / "a.yaml")


def test_yaml_that_is_missing_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="found none"):
        files.read_yaml(tmp_path / "a.yaml")
    with pytest.raises(DataError, match="not readable YAML"):
        files.read_yaml(tmp_path)
    monkeypatch.setattr(files, "MAX_YAML_BYTES", 4)
    (tmp_path / "a.yaml").write_text("a: 12")
    with pytest.raises(DataError, match="read up to 4"):
        files.read_yaml(tmp_path / "a.yaml")
