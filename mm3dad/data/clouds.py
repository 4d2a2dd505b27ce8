"""Readers of point cloud files, PLY and PCD (ascii and binary), with colour and grid where the file has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mm3dad.data.images import check_pixels, reading
from mm3dad.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 1 << 16
MAX_FIELDS = 256  # numbers of a point; descriptors of PCL take up to 153 more beside its coordinates
PLY_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
Fields = list[tuple[str, str]]


class Cloud(NamedTuple):
    """What a cloud file holds: xyz (3, H, W) float32 in the file's unit, rgb (3, H, W) float32 in [0, 1] or None; H = 1 without a grid."""

    xyz: Tensor
    rgb: Tensor | None
    organised: bool


def read_cloud(path: str | Path) -> Cloud:
    """Read a PLY or PCD file.

    Raises:
        DataError: the file is missing, cut short, or of a kind that is not read (compressed PCD).
    """
    path = Path(path)
    kind = path.suffix.lower()
    with reading(path, "a PLY or PCD cloud"):
        if kind == ".ply":
            return _read_ply(path)
        if kind == ".pcd":
            return _read_pcd(path)
    raise DataError(f"{path} must be a .ply or .pcd file, got {kind or 'no suffix'}; export the cloud as PLY")


def _split_header(path: Path, data: bytes, last: bytes) -> tuple[list[list[str]], int]:
    """Return the words of each header line and where the body starts; `last` starts the last header line."""
    start = 0
    lines = []
    while start < min(len(data), MAX_HEADER):
        end = data.find(b"\n", start)
        if end < 0:
            break
        line = data[start:end].strip()
        lines.append(line.decode("ascii", "replace").split())
        start = end + 1
        if line.lower().startswith(last):
            return [words for words in lines if words], start
    raise DataError(f"{path} is cut short inside its header (no line {last.decode()!r}); export the cloud again")


def _decode(path: Path, body: bytes, fields: Fields, count: int, form: str) -> dict[str, np.ndarray]:
    """Return name -> (count,) of the point table, whatever its encoding."""
    check_pixels(path, count)
    if len(fields) > MAX_FIELDS:
        raise DataError(f"{path} has more than {MAX_FIELDS} numbers for each point; export x, y, z and colour only")
    if form == "ascii":
        rows = body.split(b"\n", count)[:count]
        width = len(fields)
        table = np.array(b" ".join(rows).split(), dtype="S32")
        if table.size != count * width:
            raise DataError(
                f"{path} has {table.size} numbers for {count} points of {width}, it is cut short or damaged; export the cloud again"
            )
        columns = table.reshape(count, width).T
        return {name: columns[i].astype(kind if kind[0] in "iu" else "f8") for i, (name, kind) in enumerate(fields)}
    order = ">" if form == "binary_big_endian" else "<"
    layout = np.dtype([(name, order + kind) for name, kind in fields])
    if len(body) < count * layout.itemsize:
        raise DataError(f"{path} has {len(body)} bytes for {count} points of {layout.itemsize}, it is cut short; export the cloud again")
    points = np.frombuffer(body, layout, count)
    return {name: points[name] for name, _ in fields}


def _assemble(path: Path, columns: dict[str, np.ndarray], colour: np.ndarray | None, size: tuple[int, int]) -> Cloud:
    lacking = [name for name in "xyz" if name not in columns]
    if lacking:
        raise DataError(f"{path} has no {', '.join(lacking)}, only {', '.join(columns)}; export points with x, y and z")
    import torch

    with np.errstate(over="ignore"):
        xyz = np.stack([columns[name] for name in "xyz"]).astype(np.float32).reshape(3, *size)
    rgb = None
    if colour is not None:
        scaled = colour.astype(np.float32) / (np.iinfo(colour.dtype).max if colour.dtype.kind == "u" else 1)
        if not (scaled.min() >= 0 and scaled.max() <= 1):  # so that NaN is refused
            raise DataError(f"{path} has colours outside [0, 1]; export them as 8 bits or floats in [0, 1]")
        rgb = torch.from_numpy(scaled.reshape(3, *size))
    return Cloud(torch.from_numpy(xyz), rgb, size[0] > 1)


def _read_ply(path: Path) -> Cloud:
    data = path.read_bytes()
    if not data.startswith(b"ply"):
        raise DataError(f"{path} does not start with 'ply', it is another kind of file; export the cloud again")
    lines, start = _split_header(path, data, b"end_header")
    form, count, fields, element = "", -1, [], ""
    for words in lines:
        if words[0] == "format":
            form = words[1]
        elif words[0] == "element":
            element = words[1]
            if element == "vertex":
                count = int(words[2])
            elif count < 0:
                raise DataError(f"{path} has {element!r} before its points; export the cloud without other elements")
        elif words[0] == "property" and element == "vertex":
            if words[1] not in PLY_TYPES:
                raise DataError(
                    f"{path} has points with a {words[1]!r} property {words[-1]!r}, expected plain numbers; export x, y, z and colour only"
                )
            fields.append((words[-1].lower(), PLY_TYPES[words[1]]))
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise DataError(f"{path} has format {form!r}, expected ascii or binary; export the cloud again")
    columns = _decode(path, data[start:], fields, count, form)
    colour = None
    for names in (("red", "green", "blue"), ("r", "g", "b")):
        if all(name in columns for name in names):
            native = columns[names[0]].dtype.newbyteorder("=")
            colour = np.stack([columns[name] for name in names]).astype(native)
    return _assemble(path, columns, colour, (1, count))


def _read_pcd(path: Path) -> Cloud:
    data = path.read_bytes()
    lines, start = _split_header(path, data, b"data ")
    header = {words[0].upper(): words[1:] for words in lines if not words[0].startswith("#")}
    lacking = [key for key in ("FIELDS", "SIZE", "TYPE", "WIDTH", "HEIGHT", "DATA") if not header.get(key)]
    if lacking:
        raise DataError(f"{path} has no {', '.join(lacking)} in its header, expected a PCD file; export the cloud again")
    form = header["DATA"][0].lower()
    if form not in ("ascii", "binary"):
        raise DataError(
            f"{path} has DATA {form}, expected ascii or binary; save it uncompressed (pcl_convert_pcd_ascii_binary in.pcd out.pcd 1)"
        )
    repeats = [int(count) for count in header.get("COUNT", ["1"] * len(header["FIELDS"]))]
    fields: Fields = []
    for index, (name, size, kind, repeat) in enumerate(zip(header["FIELDS"], header["SIZE"], header["TYPE"], repeats, strict=True)):
        if kind.upper() not in ("F", "I", "U") or size not in ("1", "2", "4", "8"):
            raise DataError(f"{path} has a field {name!r} of type {kind}{size}, expected F, I or U; export x, y, z only")
        for part in range(min(repeat, MAX_FIELDS + 1)):
            fields.append((name.lower() if repeat == 1 and name != "_" else f"{name}.{index}.{part}", f"{kind.lower()}{size}"))
    width, height = int(header["WIDTH"][0]), int(header["HEIGHT"][0])
    columns = _decode(path, data[start:], fields, width * height, form)
    colour = None
    packed = columns.get("rgb", columns.get("rgba"))
    if packed is not None:
        # PCL packs 0xRRGGBB into the bits of a float or an unsigned integer
        bits = packed.astype("<f4").view("<u4") if packed.dtype.kind == "f" else packed.astype("<u4")
        colour = np.stack([(bits >> shift & 255).astype(np.uint8) for shift in (16, 8, 0)])
    return _assemble(path, columns, colour, (height, width))
