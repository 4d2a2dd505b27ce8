"""Foreign files, damaged in every way, give a value or one line; `tests/long/fuzz.py` does the same for hours."""

from __future__ import annotations

import gzip
import io
import tarfile
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm3dad import files
from mm3dad.data import archive, eyecandies
from mm3dad.data.clouds import read_cloud
from mm3dad.data.images import read_rgb
from mm3dad.errors import DataError, Mm3dadError, WeightsError
from mm3dad.features.weights import read_checkpoint
from tests.fuzz.corpus import make_readers, mutate

READERS = make_readers()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def feed(reader, folder, data):
    """Read `data`; anything but a value or an error of ours goes through."""
    path = folder / f"input{reader.suffix}"
    path.write_bytes(data)
    start = time.process_time()
    try:
        reader.read(path)
    except Mm3dadError as error:
        assert "\n" not in str(error)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", READERS)
def test_seeds_are_valid(name, tmp_path):
    reader = READERS[name]
    read = 0
    for number, data in enumerate(reader.seeds):
        path = tmp_path / f"{number}{reader.suffix}"
        path.write_bytes(data)
        try:
            reader.read(path)
            read += 1
        except DataError:  # some seeds are near misses on purpose
            continue
    assert read


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60)
@given(number=st.integers(0, 10**9))
def test_a_mutated_file_is_read_or_refused(name, folder, number):
    feed(READERS[name], folder, mutate(READERS[name].seeds, number))
    assert all(path.name == "unpacked" or path.stem == "input" for path in folder.iterdir())  # "../../x" would land here


@pytest.mark.parametrize("number", [566, 2733, 4963, 32260])
def test_tiffs_that_once_hung_are_refused(folder, number):
    feed(READERS["tiff"], folder, mutate(READERS["tiff"].seeds, number))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=25)
@given(data=st.binary(max_size=300))
def test_noise_is_refused(name, folder, data):
    feed(READERS[name], folder, data)


def test_a_postscript_file_named_png_is_not_handed_on(tmp_path):
    path = tmp_path / "000.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="not a readable image"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"COUNT 1 1 1 1", b"COUNT 1 1 1 999999999999", "more than 256 numbers"),
        (b"TYPE F F F F", b"TYPE F F O F", "expected F, I or U"),
        (b"SIZE 4 4 4 4", b"SIZE 4 4 4 1024", "expected F, I or U"),
        (b"WIDTH 2", b"WIDTH 200000000", "claims 400000000 pixels"),
    ],
)
def test_a_pcd_header_cannot_claim_too_much(tmp_path, old, new, said):
    path = tmp_path / "a.pcd"
    path.write_bytes(READERS["pcd"].seeds[0].replace(old, new))
    with pytest.raises(DataError, match=said):
        read_cloud(path)


def test_colours_that_are_no_numbers_are_refused(tmp_path):
    path = tmp_path / "a.ply"
    path.write_bytes(READERS["ply"].seeds[0].replace(b"uchar", b"float").replace(b"1 2 3", b"nan 0 0"))
    with pytest.raises(DataError, match=r"colours outside \[0, 1\]"):
        read_cloud(path)


def test_a_tar_header_of_zeros_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_HEADER_BYTES", 1 << 20)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as tar:
        entry = tarfile.TarInfo("pax")
        entry.type, entry.size = tarfile.XHDTYPE, 1 << 23
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    path = tmp_path / "a.tar.xz"
    path.write_bytes(out.getvalue())
    assert path.stat().st_size < 1 << 14
    with pytest.raises(DataError, match="more than 1048576 bytes beside its files"):
        archive.unpack(path, tmp_path / "out")


def test_a_tail_of_zeros_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_HEADER_BYTES", 1 << 20)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("nut/train/a.png"))
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(out.getvalue() + bytes(1 << 23)))
    with pytest.raises(DataError, match="beside its files"):
        archive.unpack(path, tmp_path / "out")


def test_a_checkpoint_cannot_claim_more_than_it_holds(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    with pytest.raises(WeightsError, match="claims more values than the file holds"):
        read_checkpoint(path)


def test_pickled_code_does_not_run(tmp_path):
    class Bad:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    path = tmp_path / "a.pth"
    torch.save({"w": Bad()}, path)
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "written").exists()


def test_large_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(DataError, match="JSON is read up to 10"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.yaml").write_text("a: 1\n" * (1 << 15))
    with pytest.raises(DataError, match="at most 65536 are read"):
        eyecandies.read_depth_range(tmp_path / "a.yaml")
