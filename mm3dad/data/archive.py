"""Downloaded archives: hashed, checked member by member, and unpacked into a new folder."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from mm3dad.data.records import list_folders
from mm3dad.errors import DataError, StorageError
from mm3dad.files import read_json, sha256_file, write_json, write_with

SPLIT_FOLDERS = ("train", "val", "validation", "test", "test_public")
MAX_FILES = 1_000_000
MAX_RATIO = 200  # images and float maps pack 2 to 10 times; only a bomb packs more than this
FREE_RATIO_BYTES = 1 << 30  # below this a high ratio does no harm (masks pack very well)
RECORD = "archives.json"
MAX_HEADER_BYTES = 1 << 24  # of one member, with its long names; tar holds them in memory


class Member(NamedTuple):
    """One entry of an archive."""

    name: str
    length: int
    is_folder: bool
    is_plain: bool
    stream: IO[bytes] | None
    position: int  # bytes of the archive up to here


@contextmanager
def _open_stream(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Yield the unpacked stream and the file below it, whose position tells how far it is."""
    with path.open("rb") as raw:
        start = raw.read(6)
        raw.seek(max(0, path.stat().st_size - 1024))
        end = raw.read()
        raw.seek(0)
        for magic, opener in ((b"\x1f\x8b", gzip.open), (b"\xfd7zXZ", lzma.open), (b"BZh", bz2.open)):
            if start.startswith(magic):
                with cast("IO[bytes]", opener(raw)) as stream:
                    yield stream, raw
                return
        if end.strip(b"\0"):  # without compression nothing but its end of zeros shows that a tar is whole
            raise EOFError("its end is missing")
        yield raw, raw


class _Metered:
    """A stream that gives at most `left` bytes: few packed bytes may claim a header of any length."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path, self._stream, self.left = path, stream, MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise DataError(f"{self._path} has more than {MAX_HEADER_BYTES} bytes beside its files; check what it is")
        return data


def _list_tar(path: Path) -> Iterator[Member]:
    with _open_stream(path) as (stream, raw):
        metered = _Metered(path, stream)
        with tarfile.open(fileobj=cast("IO[bytes]", metered), mode="r|") as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.isfile() else None
                metered.left = max(0, entry.size) + MAX_HEADER_BYTES
                yield Member(entry.name, entry.size, entry.isdir(), entry.isfile() or entry.isdir(), content, raw.tell())
                metered.left = MAX_HEADER_BYTES
            while metered.read(1 << 20):  # the end of a compressed stream shows whether it was whole
                pass


def _list_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            kind = entry.external_attr >> 28  # 0: not from Unix, 4: folder, 8: file; others are links and devices
            if entry.is_dir():
                yield Member(entry.filename, 0, True, True, None, entry.header_offset)
            else:
                with archive.open(entry) as stream:
                    yield Member(entry.filename, entry.file_size, False, kind in (0, 8), stream, entry.header_offset)


def _check_member(path: Path, member: Member) -> None:
    parts = PurePosixPath(member.name.replace("\\", "/"))
    is_inside = not (parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0] or "\0" in member.name)
    if not is_inside or not (parts.parts or member.is_folder):
        raise DataError(f"{path} holds {member.name!r}, which leads outside the folder; download it again from the official page")
    if not member.is_plain:
        raise DataError(f"{path} holds {member.name!r}, which is a link or a device, expected files and folders; download it again")


def _copy(member: Member, place: Path) -> None:
    assert member.stream is not None
    with place.open("r+b") as out:
        shutil.copyfileobj(member.stream, out, 1 << 20)


def _extract(path: Path, target: Path, progress: Callable[[int, int], None]) -> tuple[int, int]:
    """Write all members below `target`; return the number of files and bytes."""
    size = path.stat().st_size
    limit = max(FREE_RATIO_BYTES, size * MAX_RATIO)
    files = total = 0
    for member in _list_zip(path) if zipfile.is_zipfile(path) else _list_tar(path):
        _check_member(path, member)
        place = target / member.name.replace("\\", "/")
        if member.is_folder:
            place.mkdir(parents=True, exist_ok=True)
            continue
        files, total = files + 1, total + member.length
        if files > MAX_FILES or total > limit:
            raise DataError(
                f"{path} unpacks to more than {MAX_FILES} files or {limit >> 30} GiB, {MAX_RATIO} times its size; check what it is"
            )
        write_with(place, partial(_copy, member))
        if place.stat().st_size != member.length:
            raise DataError(f"{path}: {member.name!r} has {place.stat().st_size} bytes, expected {member.length}; download it again")
        progress(member.position, size)
    return files, total


def find_root(folder: Path, depth: int = 3) -> Path | None:
    """Return the highest folder below `folder` whose subfolders are categories (hold train/, val/ or test/)."""
    below = list_folders(folder)
    if any((child / split).is_dir() for child in below for split in SPLIT_FOLDERS):
        return folder
    return next((root for child in below if depth > 0 and (root := find_root(child, depth - 1))), None)


def unpack(path: str | Path, root: str | Path, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Unpack a .tar.xz, .tar.gz, .tar or .zip of a dataset into `root`, once.

    Nothing appears under its final name before the whole archive is unpacked and its layout checked.

    Args:
        path: the downloaded file.
        root: folder that receives the categories; made if missing.
        progress: called with the bytes of the archive that are unpacked, and all of them.

    Returns:
        {"file", "bytes", "sha256", "files", "unpacked_bytes", "categories", "new"}; `new` is False if it lay there already.

    Raises:
        DataError: not an archive, damaged, unsafe names or links, an absurd size, or no dataset inside.
        StorageError: the disk is full.
    """
    path, root = Path(path), Path(root)
    if not path.is_file():
        raise DataError(
            f"expected an archive at {path}, found {'a folder' if path.is_dir() else 'nothing'}; give the file that you downloaded"
        )
    digest = sha256_file(path)
    done = read_json(root / RECORD) if (root / RECORD).is_file() else {}
    if digest in done and all((root / name).is_dir() for name in done[digest]["categories"]):
        return {**done[digest], "new": False}
    try:
        temporary = root / f".unpacking-{digest[:12]}"
        shutil.rmtree(temporary, ignore_errors=True)  # what a killed call left
        temporary.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"cannot unpack into {root}: {error.strerror}; choose a folder that can be written") from error
    try:
        try:
            files, total = _extract(path, temporary, progress)
        except (StorageError, DataError):
            raise
        except Exception as error:  # tarfile, zipfile, zlib and lzma share no base class; each of them only decodes here
            raise DataError(f"{path} is not a whole .tar.xz, .tar.gz or .zip ({error}); it may be cut short, download it again") from error
        moved = _move_categories(path, temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    report = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": digest,
        "files": files,
        "unpacked_bytes": total,
        "categories": moved,
    }
    write_json(root / RECORD, {**done, digest: report})
    return {**report, "new": True}


def _move_categories(path: Path, temporary: Path, root: Path) -> list[str]:
    if any((temporary / split).is_dir() for split in SPLIT_FOLDERS):
        inside = [(temporary, path.name.split(".")[0])]  # one category alone, named by its archive
    else:
        found = find_root(temporary)
        if found is None:
            tops = ", ".join(sorted(entry.name for entry in temporary.iterdir())[:5]) or "nothing"
            raise DataError(f"{path} holds {tops}, expected categories with train/ and test/ folders; is it another dataset's archive?")
        inside = [(child, child.name) for child in list_folders(found) if any((child / split).is_dir() for split in SPLIT_FOLDERS)]
    taken = [name for _, name in inside if (root / name).exists()]
    if taken:
        raise DataError(f"{root} already has {', '.join(taken)}; unpack {path.name} into a new folder")
    for folder, name in inside:
        folder.rename(root / name)
    return sorted(name for _, name in inside)
