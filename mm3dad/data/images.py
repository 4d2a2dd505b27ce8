"""Readers of one file: colour images, masks and float maps (PNG, JPG, TIFF, NPY), whole or a one-line error."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mm3dad.errors import DataError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
TIFFS = (".tiff", ".tif")
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its complaints about damaged files would stand beside our one line
FORMATS = ("PNG", "JPEG", "BMP")  # by content: PIL would hand a PostScript file of any name to another program
MAX_BYTES = 1 << 31
MAX_PIXELS = 100_000_000  # a small compressed file can claim any size; no area camera comes near this one
MAX_PAGES = 64  # of a TIFF: one image, at most a page for each of some channels


class Header(NamedTuple):
    """What a file says of itself without its pixels being read: array shape (H, W) or (H, W, C) and dtype name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> tuple[int, int]:
        """(H, W); a (3, H, W) array is understood too."""
        if len(self.shape) == 3 and self.shape[0] == 3 and self.shape[2] != 3:
            return self.shape[1], self.shape[2]
        return self.shape[0], self.shape[1]


@contextmanager
def reading(path: Path, expected: str, limit: int = MAX_BYTES) -> Iterator[None]:
    """Turn whatever a decoding library raises on a damaged file into one line that names the file."""
    if not path.is_file():
        raise DataError(f"expected {expected} at {path}, found {'a folder' if path.is_dir() else 'nothing'}; check the path")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes), expected {expected}; copy the file again")
    if path.stat().st_size > limit:
        raise DataError(f"{path} has {path.stat().st_size} bytes, at most {limit} are read; check that it is {expected}")
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path} asks for more memory than there is; check that it is {expected}") from error
    except Exception as error:  # PIL, tifffile, numpy and zlib share no base class; each of them only decodes here
        reason = one_line(error, 160) or type(error).__name__
        raise DataError(
            f"{path} is not a readable {expected.removeprefix('a ').removeprefix('an ')} ({reason}); copy the file again"
        ) from error


def check_pixels(path: Path, count: int) -> None:
    """Refuse a header that claims an absurd size, before memory is taken for it."""
    if not 0 < count <= MAX_PIXELS:
        raise DataError(f"{path} claims {count} pixels, at most {MAX_PIXELS} are read; check the file")


def _open(path: Path) -> Image:
    from PIL import Image

    picture = Image.open(path, formats=FORMATS)
    check_pixels(path, picture.width * picture.height)
    return picture


def read_header(path: str | Path) -> Header:
    """Read shape and dtype of an image, TIFF or NPY without its pixels.

    Raises:
        DataError: the file is missing, damaged, of another kind or no image, (H, W) or (H, W, C).
    """
    header = _read_any_header(Path(path))
    if len(header.shape) not in (2, 3):
        raise DataError(f"{path} has shape {header.shape}, expected (H, W) or (H, W, C); save one image a file")
    return header


def _read_any_header(path: Path) -> Header:
    suffix = path.suffix.lower()
    with reading(path, "an image, TIFF or NPY file"):
        if suffix in TIFFS:
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                with suppress(IndexError):  # a damaged chain of pages may never end
                    tiff.pages[MAX_PAGES]
                    raise DataError(f"{path} has more than {MAX_PAGES} pages, expected one image; save one image a file")
                series = tiff.series[0]
                check_pixels(path, int(np.prod(series.shape, dtype=np.int64)) // (3 if len(series.shape) == 3 else 1))
                for page in series.pages:  # strips that are missing would be filled one after the other
                    if page and len(page.dataoffsets) < (claimed := math.prod(page.chunked)):
                        raise DataError(f"{path} claims {claimed} strips and holds {len(page.dataoffsets)}; copy the file again")
                last = max((page.dataoffsets[-1] + page.databytecounts[-1] for page in series.pages if page), default=0)
                if last > path.stat().st_size:
                    raise DataError(f"{path} is cut short ({path.stat().st_size} bytes, its pixels end at {last}); copy the file again")
                return Header(tuple(series.shape), str(series.dtype))
        if suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return Header(array.shape, str(array.dtype))
        with _open(path) as picture:
            bands = len(picture.getbands())
            shape = (picture.height, picture.width) + ((bands,) if bands > 1 else ())
            return Header(
                shape, {"I": "int32", "F": "float32", "1": "bool"}.get(picture.mode, "uint16" if "16" in picture.mode else "uint8")
            )


def read_array(path: str | Path, expected: str = "an image, TIFF or NPY file") -> np.ndarray:
    """Read a file as it is: (H, W) or (H, W, C), the file's own dtype.

    Raises:
        DataError: the file is missing, damaged, too large or of another kind.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    with reading(path, expected):
        if suffix in TIFFS:
            import tifffile

            read_header(path)
            return tifffile.imread(path)
        if suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            check_pixels(path, array.size // (3 if array.ndim == 3 else 1))
            return np.array(array)
        with _open(path) as picture:
            return np.array(picture.convert("RGB") if picture.mode in ("P", "CMYK", "YCbCr") else picture)


def _unit_range(array: np.ndarray, path: Path) -> np.ndarray:
    """Scale integers by their dtype's maximum; floats must lie in [0, 1] already."""
    if array.dtype == bool:
        return array.astype(np.float32)
    if array.dtype.kind == "u":
        return array.astype(np.float32) / np.iinfo(array.dtype).max
    if array.dtype == np.int32:  # PIL's reading of 16-bit grey
        return array.astype(np.float32) / 65535
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        return array.astype(np.float32)
    raise DataError(f"{path} holds {array.dtype} outside [0, 1], expected an 8 or 16-bit image or floats in [0, 1]; convert it")


def load_rgb(path: str | Path) -> np.ndarray:
    """Read a colour image; grey is repeated, an alpha channel is dropped.

    Returns:
        (3, H, W) float32 in [0, 1].

    Raises:
        DataError: the file is missing, damaged or not an image.
    """
    path = Path(path)
    array = read_array(path, "an image")
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    elif array.ndim == 3 and array.shape[2] == 2:
        array = np.repeat(array[..., :1], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise DataError(f"{path} has shape {array.shape}, expected an image (H, W) or (H, W, 3); convert it to RGB")
    return np.ascontiguousarray(_unit_range(array[..., :3], path).transpose(2, 0, 1))


def read_rgb(path: str | Path) -> Tensor:
    """Do the same as `load_rgb` and return a tensor."""
    import torch

    return torch.from_numpy(load_rgb(path))


def load_mask(path: str | Path) -> np.ndarray:
    """Read a ground-truth mask: grey, scaled to [0, 1], above 0.5 is a defect (multimodal protocol of MVTec 3D-AD).

    Returns:
        (H, W) bool.

    Raises:
        DataError: the file is missing, damaged or not a mask.
    """
    path = Path(path)
    array = read_array(path, "a mask image")
    if array.ndim == 3:
        array = array[..., : min(array.shape[2], 3)].max(axis=2) if array.shape[2] != 2 else array[..., 0]
    if array.ndim != 2:
        raise DataError(f"{path} has shape {array.shape}, expected a mask (H, W); write one grey channel")
    if array.dtype.kind in "ui" and array.size and array.max() == 1:
        raise DataError(f"{path} has no value above 1 of {np.iinfo(array.dtype).max}, expected 0 and 255; multiply the mask by 255")
    return np.ascontiguousarray(_unit_range(array, path) > 0.5)


def read_mask(path: str | Path) -> Tensor:
    """Do the same as `load_mask` and return a tensor."""
    import torch

    return torch.from_numpy(load_mask(path))


def load_xyz(path: str | Path) -> np.ndarray:
    """Read an organised cloud: (H, W, 3) or (3, H, W) floats in a TIFF or NPY.

    Returns:
        (3, H, W) float32, in the file's unit; missing points as the file has them (NaN or zeros).

    Raises:
        DataError: the file is missing, damaged, of integers, or not three channels.
    """
    path = Path(path)
    array = read_array(path, "an xyz TIFF or NPY")
    if array.ndim == 3 and array.shape[2] == 3:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != 3:
        raise DataError(f"{path} has shape {array.shape}, expected xyz (H, W, 3); a depth image belongs into a depth/ folder")
    if array.dtype.kind != "f":
        raise DataError(f"{path} holds {array.dtype}, expected float32 metres; convert depth with data.organized.from_depth")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def read_xyz(path: str | Path, unit: float = 1.0) -> Tensor:
    """Do the same as `load_xyz` and return a tensor in metres.

    Args:
        path: the file.
        unit: metres per number in the file.
    """
    import torch

    return torch.from_numpy(load_xyz(path)) * unit


def read_depth(path: str | Path) -> Tensor:
    """Read a depth image in the file's own unit.

    Returns:
        (H, W) float64.

    Raises:
        DataError: the file is missing, damaged or has more than one channel.
    """
    path = Path(path)
    array = read_array(path, "a depth PNG, TIFF or NPY")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "uif":
        raise DataError(f"{path} has shape {array.shape} {array.dtype}, expected one channel of depth; save z alone")
    if path.suffix.lower() in PICTURES and array.dtype == np.uint8:
        raise DataError(f"{path} has 8 bits, expected a depth image of 16 bits or floats; export the depth without colour mapping")
    import torch

    return torch.from_numpy(array.astype(np.float64))
