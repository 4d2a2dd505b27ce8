import io
import os
import shutil
import tarfile
import zipfile

import pytest

from mm3dad.data import archive
from mm3dad.errors import DataError
from mm3dad.files import sha256_file
from tests.data.trees import write_tree


def pack(tmp_path, name, top=""):
    root = write_tree(tmp_path / "source", ("bagel", "tire"), 1, 0, 1, 0, size=8)
    path = tmp_path / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for file in root.rglob("*"):
                out.write(file, top + str(file.relative_to(root)))
    else:
        with tarfile.open(path, "w:" + name.rpartition(".")[2].replace("tar", "")) as out:
            out.add(root, top.rstrip("/") or ".")
    return path


@pytest.mark.parametrize("name", ["data.tar.xz", "data.tar.gz", "data.tar", "data.zip"])
@pytest.mark.parametrize("top", ["", "mvtec_3d/"])
def test_unpacks_every_kind_once(tmp_path, name, top):
    path = pack(tmp_path, name, top)
    report = archive.unpack(path, tmp_path / "raw")
    assert report["categories"] == ["bagel", "tire"]
    assert report["sha256"] == sha256_file(path)
    assert report["bytes"] == path.stat().st_size
    assert report["new"]
    made = {str(file.relative_to(tmp_path / "raw")): file.read_bytes() for file in (tmp_path / "raw").rglob("*") if file.is_file()}
    source = {str(file.relative_to(tmp_path / "source")): file.read_bytes() for file in (tmp_path / "source").rglob("*") if file.is_file()}
    made.pop("archives.json")
    assert made == source
    assert report["files"] == len(source)
    assert report["unpacked_bytes"] == sum(map(len, source.values()))
    assert not archive.unpack(path, tmp_path / "raw")["new"]


def test_one_category_alone_is_named_by_its_archive(tmp_path):
    write_tree(tmp_path / "source", ("c",), 1, 0, 1, 0, size=8)
    with zipfile.ZipFile(tmp_path / "Confetto.zip", "w") as out:
        for file in (tmp_path / "source/c").rglob("*.*"):
            out.write(file, str(file.relative_to(tmp_path / "source/c")))
    assert archive.unpack(tmp_path / "Confetto.zip", tmp_path / "raw")["categories"] == ["Confetto"]
    assert (tmp_path / "raw/Confetto/train/good/rgb/000.png").is_file()


def add(out, name, data=b"x", **changes):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for key, value in changes.items():
        setattr(entry, key, value)
    out.addfile(entry, io.BytesIO(data))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("/etc/evil", {}),
        ("a/../../evil", {}),
        ("..\\evil", {}),
        ("C:/evil", {}),
        ("a/link", {"type": tarfile.SYMTYPE, "linkname": "/etc", "size": 0}),
        ("a/hard", {"type": tarfile.LNKTYPE, "linkname": "../evil", "size": 0}),
        ("a/device", {"type": tarfile.CHRTYPE, "size": 0}),
    ],
)
def test_unsafe_members_are_refused_and_leave_nothing(tmp_path, name, changes):
    with tarfile.open(tmp_path / "bad.tar", "w") as out:
        add(out, "a/train/good/rgb/000.png")
        add(out, name, **changes)
    with pytest.raises(DataError, match=r"bad\.tar holds .*download it again"):
        archive.unpack(tmp_path / "bad.tar", tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "raw"]


def test_zip_with_link_or_parent_path(tmp_path):
    link = zipfile.ZipInfo("a/link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    for name, entry in (("b.zip", "../evil"), ("c.zip", link)):
        with zipfile.ZipFile(tmp_path / name, "w") as out:
            out.writestr(entry, "x")
        with pytest.raises(DataError, match="holds"):
            archive.unpack(tmp_path / name, tmp_path / "raw")


def test_bombs_stop_early(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "FREE_RATIO_BYTES", 1000)
    monkeypatch.setattr(archive, "MAX_RATIO", 2)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a/train/big", bytes(1 << 20))
    with pytest.raises(DataError, match=r"a\.zip unpacks to more than"):
        archive.unpack(tmp_path / "a.zip", tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.parametrize("name", ["data.tar.xz", "data.tar.gz", "data.tar", "data.zip"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_truncated_archives_leave_nothing(tmp_path, name, share):
    path = pack(tmp_path, name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=f"{name}.*download it again") as caught:
        archive.unpack(path, tmp_path / "raw")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "raw").iterdir()) == []


def test_other_archives_and_folders_in_the_way(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as out:
        out.writestr("holiday/beach.txt", "x")
    with pytest.raises(DataError, match="holds holiday, expected categories"):
        archive.unpack(tmp_path / "photos.zip", tmp_path / "raw")
    path = pack(tmp_path, "data.zip")
    (tmp_path / "raw/bagel").mkdir()
    with pytest.raises(DataError, match="already has bagel"):
        archive.unpack(path, tmp_path / "raw")
    with pytest.raises(DataError, match="found nothing"):
        archive.unpack(tmp_path / "no.zip", tmp_path / "raw")


def test_unpacks_again_what_was_deleted_and_clears_what_a_killed_call_left(tmp_path):
    path = pack(tmp_path, "data.zip")
    archive.unpack(path, tmp_path / "raw")
    for name in ("bagel", "tire"):
        shutil.rmtree(tmp_path / "raw" / name)
    left = tmp_path / "raw" / f".unpacking-{sha256_file(path)[:12]}" / "half"
    left.mkdir(parents=True)
    assert archive.unpack(path, tmp_path / "raw")["new"]
    assert sorted(os.listdir(tmp_path / "raw")) == ["archives.json", "bagel", "tire"]


def test_folders_that_macos_adds_are_no_categories(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as out:
        out.writestr("__MACOSX/bagel/train/good/rgb/._000.png", "x")
        out.writestr("bagel/train/good/rgb/000.png", "x")
    assert archive.unpack(tmp_path / "data.zip", tmp_path / "raw")["categories"] == ["bagel"]


@pytest.mark.parametrize("name", ["data.tar.xz", "data.tar", "data.zip"])
def test_progress_rises_to_the_size_of_the_archive(tmp_path, name):
    path, seen = pack(tmp_path, name), []
    archive.unpack(path, tmp_path / "raw", lambda done, total: seen.append((done, total)))
    size = path.stat().st_size
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(0 <= done <= total == size for done, total in seen)
    assert len(seen) == 10
