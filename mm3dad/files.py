"""Safe files: each is written whole or not at all, and checked when it is read.

The only place of the package that writes a result.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm3dad.errors import DataError, ModelError, StorageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

RESULT_FORMAT = 1  # of evaluate.json and predict.json; raised when an older reader would misread them. Without it: format 1
MAX_JSON_BYTES = 1 << 28  # parsed JSON takes up to twenty times its text
MAX_YAML_BYTES = 1 << 17  # written by hand
MAX_YAML_DEPTH = 20
MAX_CHECKPOINT_BYTES = 1 << 33  # no published backbone comes near


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    Raises:
        StorageError: the disk is full or the folder cannot be written; `path` is left as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder, then run again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Bring a folder's list of names to the disk: a rename alone may be lost with the power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such call
            raise
    finally:
        os.close(handle)


def write_with(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write `path` through `write(temporary_path)`, whole or not at all."""
    with atomic(path) as temporary:
        write(temporary)
    return Path(path)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write bytes, whole or not at all."""
    return write_with(path, lambda temporary: temporary.write_bytes(data))


def write_stream(path: str | Path, chunks: Iterable[bytes]) -> Path:
    """Write bytes that come in pieces, whole or not at all; an error of `chunks` leaves what was there."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            stream.writelines(chunks)

    return write_with(path, write)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text, whole or not at all."""
    return write_bytes(path, text.encode())


def _plain(value: Any) -> Any:
    """Turn floats that JSON lacks (NaN, infinities) into None, tuples and paths into lists and text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def write_json(path: str | Path, value: Any) -> Path:
    """Write JSON (NaN and infinities become null), whole or not at all."""
    return write_text(path, json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        DataError: the file is missing, is not JSON, or is larger than `MAX_JSON_BYTES`.
    """
    try:
        size = Path(path).stat().st_size
        if size > MAX_JSON_BYTES:
            raise DataError(f"{path} has {size} bytes, JSON is read up to {MAX_JSON_BYTES}; check what it is")
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"expected a JSON file at {path}, found none; check the path") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{path} is not readable JSON ({error}); write it again") from error


def format_yaml(value: Any) -> str:
    """Return plain values as YAML (NaN and infinities become null)."""
    import yaml

    return yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True)


def write_yaml(path: str | Path, value: Any) -> Path:
    """Write plain values as YAML (NaN and infinities become null), whole or not at all."""
    return write_text(path, format_yaml(value))


def read_yaml(path: str | Path) -> Any:
    """Read plain values from YAML; nothing in it is run, and a name stands for one value once.

    Raises:
        DataError: missing, no YAML, larger than `MAX_YAML_BYTES`, deeper than `MAX_YAML_DEPTH`, a name given twice, or with
            references (`*name`), by which a few lines can stand for more than memory holds.
    """
    import yaml

    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_YAML_BYTES:
            raise DataError(f"{path} has {size} bytes, YAML is read up to {MAX_YAML_BYTES}; check what it is")
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # before anything nests as deep as it likes
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise DataError(f"{path} nests deeper than {MAX_YAML_DEPTH} levels; check what it is")
            if isinstance(event, yaml.AliasEvent):
                raise DataError(f"{path} has a reference, *{event.anchor}; write the value out")
        _check_names(path, yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"expected a YAML file at {path}, found none; check the path") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError, MemoryError) as error:
        raise DataError(f"{path} is not readable YAML ({' '.join(str(error).split())}); mend it") from error


def _check_names(path: Path, node: Any) -> None:
    """Refuse a name given twice: YAML would keep the last without a word."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{path} gives {name!r} twice; keep one of them")
        for _, value in node.value:
            _check_names(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_names(path, value)


def format_line(value: Any) -> str:
    """Return JSON in one line (NaN and infinities become null), without the line's end."""
    return json.dumps(_plain(value), allow_nan=False)


def append_line(path: str | Path, value: Any) -> None:
    """Append one line of JSON. A line that an earlier process left unfinished is ended first, so that the new one stays whole.

    Raises:
        StorageError: the disk is full or the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                torn = stream.read(1) != b"\n"
            else:
                torn = False
            stream.write(b"\n" * torn + format_line(value).encode() + b"\n")
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another file, then run again"
        ) from error


def read_lines(path: str | Path) -> list[Any]:
    """Return what `append_line` wrote; a line that was left unfinished is skipped, a missing file has none.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def sha256_file(path: str | Path) -> str:
    """Return the sha256 of a file, read in pieces.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the path and the disk") from error
    return digest.hexdigest()


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy what shares memory: safetensors refuses it, yet with one modality a map and its part are one tensor."""
    seen: set[int] = set()
    plain = {}
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return plain


def write_tensors(path: str | Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors as safetensors, whole or not at all; return the file's sha256.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    digest = ""
    plain = _unshared(tensors)

    def write(temporary: Path) -> None:
        nonlocal digest
        try:
            save_file(plain, temporary)
        except SafetensorError as error:  # its own name for a full disk
            raise OSError(str(error)) from error
        digest = sha256_file(temporary)

    write_with(path, write)
    return digest


def read_tensors(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read safetensors, checking the sha256 when one is given.

    Raises:
        ModelError: the file is missing, damaged, or not the one that was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise ModelError(f"expected tensors at {path}, found none; fit and save the model again")
    if sha256 is not None and (got := sha256_file(path)) != sha256:
        raise ModelError(f"{path} has sha256 {got[:12]}..., expected {sha256[:12]}...; the file is damaged or foreign, save it again")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error}); save it again") from error


def write_sealed(path: str | Path, content: dict[str, Any], tensors: dict[str, Tensor], stem: str = "tensors") -> Path:
    """Write tensors, then JSON that seals them under its key "tensors"; an interrupted write leaves the older pair whole.

    Args:
        path: of the JSON; the tensors lie beside it, as `stem` and a part of their sha256.
        content: plain values.
    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    staging = path.with_name(f"{stem}.new.safetensors")
    digest = write_tensors(staging, tensors)
    final = path.with_name(f"{stem}-{digest[:16]}.safetensors")
    is_known = final.exists()
    staging.replace(final)
    try:
        write_json(path, {**content, "tensors": {"file": final.name, "sha256": digest}})
    except StorageError:
        if not is_known:
            final.unlink(missing_ok=True)
        raise
    for stale in path.parent.glob(f"{stem}-*.safetensors"):
        if stale != final:
            stale.unlink()
    return path


def read_sealed(path: str | Path, seal: dict[str, Any]) -> dict[str, Tensor]:
    """Read the tensors that belong to a JSON written by `write_sealed`.

    Args:
        path: of the JSON.
        seal: what it holds under "tensors".
    Raises:
        ModelError: missing, damaged or exchanged.
    """
    try:
        name, digest = Path(seal["file"]).name, str(seal["sha256"])
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged or foreign ({error}); write it again") from error
    return read_tensors(Path(path).with_name(name), digest)


def find_differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return name -> (old, new) of what differs; a nested name is written config.backbone."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found.update({f"{name}.{key}": value for key, value in find_differences(before, after).items()})
        elif before != after:
            found[name] = (before, after)
    return found


def read_checkpoint(path: str | Path, harmless: Sequence[Any] = ()) -> Any:
    """Read a published .pth without running any code of it.

    Args:
        path: the file.
        harmless: further types of plain values that it may hold, as `torch.serialization.safe_globals` takes them.

    Raises:
        WeightsError: missing, damaged, larger than `MAX_CHECKPOINT_BYTES` packed or unpacked, or tensors that claim more than they hold.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"expected a weight file at {path}, found none; give an existing path or leave `weights` out")
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
        if size > MAX_CHECKPOINT_BYTES:
            raise WeightsError(f"{path} unpacks to {size} bytes, checkpoints are read up to {MAX_CHECKPOINT_BYTES}; check what it is")
        with torch.serialization.safe_globals(list(harmless)):
            state = torch.load(path, map_location="cpu", weights_only=True)
        _check_extent(path, state)
    except WeightsError:
        raise
    except Exception as error:  # torch reports damage by half a dozen unrelated types
        raise WeightsError(f"{path} is not a readable checkpoint of tensors ({type(error).__name__}); download it again") from error
    return state


def _check_extent(path: Path, value: Any) -> None:
    """Refuse tensors with more values than their storage: a stride of 0 lets a few bytes claim any shape."""
    if isinstance(value, dict):
        for item in value.values():
            _check_extent(path, item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_extent(path, item)
    elif hasattr(value, "untyped_storage") and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise WeightsError(f"{path} has a tensor {tuple(value.shape)} that claims more values than the file holds; download it again")
