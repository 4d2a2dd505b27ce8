"""Readers of foreign files, small valid files for each, and mutations of them: made here, so that nothing binary is kept."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
import torch
from PIL import Image
from safetensors.torch import save

from mm3dad import files
from mm3dad.data import archive, clouds, eyecandies, images
from mm3dad.features.weights import read_checkpoint

WORDS = (b"0", b"-1", b"99999999999999999999", b"nan", b"1e309", b"../../x", b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\n", b"[" * 64)


class Reader(NamedTuple):
    """A reader, the ending of its files, and the valid files that are mutated."""

    suffix: str
    read: Callable[[Path], object]
    seeds: list[bytes]


def _tiff(array: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


def _picture(mode: str, kind: str) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((12, 9), 60).convert(mode).save(out, kind)
    return out.getvalue()


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _ply(form: str) -> bytes:
    head = f"ply\nformat {form} 1.0\ncomment x\nelement vertex 3\n"
    head += "".join(f"property float {name}\n" for name in "xyz") + "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    points = np.zeros(3, [("p", "<f4", 3), ("c", "u1", 3)])
    body = points.tobytes() if form != "ascii" else b"0 0.5 1 1 2 3\n" * 3
    return f"{head}end_header\n".encode() + body


def _pcd(form: str) -> bytes:
    head = "VERSION .7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH 2\nHEIGHT 2\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 4\n"
    body = np.zeros(16, "<f4").tobytes() if form == "binary" else b"0 0.5 1 0\n" * 4
    return f"{head}DATA {form}\n".encode() + body


def _tar(mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w{mode}", format=tarfile.PAX_FORMAT) as tar:
        for name in ("nut/train/good/rgb/000.png", f"nut/test/{'long' * 30}/000.png"):
            entry = tarfile.TarInfo(name)
            entry.size = 40
            tar.addfile(entry, io.BytesIO(bytes(40)))
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("nut/train/good/rgb/000.png", bytes(200))
        packed.writestr("nut/test/good/rgb/000.png", b"abc")
    return out.getvalue()


def _pth() -> bytes:
    out = io.BytesIO()
    torch.save({"model": {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}}, out)
    return out.getvalue()


def _unpack(path: Path) -> None:
    """Unpack, and hold the archive to its folder: nothing else may appear beside it."""
    archive.unpack(path, path.parent / "unpacked")


def make_readers() -> dict[str, Reader]:
    """Return every reader of files that come from elsewhere, by name."""
    cloud = np.linspace(0, 1, 6 * 5 * 3, dtype=np.float32).reshape(6, 5, 3)
    manifest = json.dumps({"fx": 1.5, "list": [1, None, {"a": "é"}], "big": 10**20}).encode()
    return {
        "json": Reader(".json", files.read_json, [manifest, b"[" * 40 + b"]" * 40]),
        "yaml": Reader(".yaml", eyecandies.read_depth_range, [b"normalization:\n  min: 0.1\n  max: 2.0\n", b"a: &a [1, 2]\nb: [*a, *a]\n"]),
        "pose": Reader(".txt", eyecandies.read_pose, [b"1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"]),
        "png": Reader(".png", images.read_rgb, [_picture(mode, "PNG") for mode in ("RGB", "L", "P", "RGBA")]),
        "jpeg": Reader(".jpg", images.read_rgb, [_picture("RGB", "JPEG"), _picture("L", "JPEG"), _picture("RGB", "BMP")]),
        "tiff": Reader(
            ".tiff",
            images.read_xyz,
            [
                _tiff(cloud, photometric="rgb"),
                _tiff(cloud, photometric="rgb", compression="zlib"),
                _tiff(cloud.transpose(2, 0, 1), photometric="minisblack"),
                _tiff(cloud, photometric="rgb", compression="lzw", rowsperstrip=2),
            ],
        ),
        "npy": Reader(".npy", images.read_xyz, [_npy(cloud), _npy(cloud.astype(np.float64).T)]),
        "ply": Reader(".ply", clouds.read_cloud, [_ply("ascii"), _ply("binary_little_endian")]),
        "pcd": Reader(".pcd", clouds.read_cloud, [_pcd("ascii"), _pcd("binary")]),
        "tar": Reader(".tar", _unpack, [_tar(""), _tar(":gz"), _tar(":xz")]),
        "zip": Reader(".zip", _unpack, [_zip()]),
        "safetensors": Reader(".safetensors", files.read_tensors, [save({"rows": torch.zeros(4, 3), "place": torch.zeros(4, 2).short()})]),
        "pth": Reader(".pth", read_checkpoint, [_pth()]),
    }


def mutate(seeds: list[bytes], number: int) -> bytes:
    """Return mutation `number` of the seeds, always the same: 1 to 6 flips, overwritten numbers, cuts, repeats, inserted words, splices."""
    chance = random.Random(number)
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(7)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place : place + 4] = chance.choice((b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80"))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            data[place:place] = data[place : place + chance.randrange(1, 64)] * chance.choice((1, 2, 40))
        elif kind == 4:
            data[place:place] = chance.choice(WORDS)
        elif kind == 5:
            del data[place : place + chance.randrange(1, 16)]
        else:
            other = chance.choice(seeds)
            data[place:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data)
