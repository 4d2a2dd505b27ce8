"""One run at a time in a folder that keeps results."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mm3dad.errors import StorageError

LOCK = ".lock"
TEMPORARY = (".*.part", ".tmp??????")  # of files.atomic, and of the library of safetensors


@contextlib.contextmanager
def held(folder: str | Path, *swept: str) -> Iterator[None]:
    """Keep other processes from writing into `folder` while the block runs.

    The system frees the lock of a process that dies, however it dies, so a lock is never stale. It belongs to the process alone:
    workers forked from it do not hold it on after its death.

    Args:
        folder: made if missing, and removed again if nothing was written into it.
        swept: folders, as patterns below `folder` ("" is itself), from which the temporary files of a killed run are removed.

    Raises:
        StorageError: another process works there, or the folder cannot be written.
    """
    path = Path(folder) / LOCK
    made = [place for place in (path.parent, *path.parent.parents) if not place.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write {folder}: {error.strerror}; choose a folder that can be written") from error
    try:
        for place in swept:
            for name in TEMPORARY:
                for left in path.parent.glob(f"{place}/{name}" if place else name):
                    left.unlink(missing_ok=True)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        with contextlib.suppress(OSError):  # not empty, as a rule
            for place in made:
                place.rmdir()


def _acquire(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held it before may have removed the file between our opening and our locking it.
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                os.truncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                return handle
        except BlockingIOError as error:
            owner = os.read(handle, 20).decode() or "unknown"
            os.close(handle)
            raise StorageError(f"{path.parent} is in use by process {owner}; wait until it has ended, or choose another folder") from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
