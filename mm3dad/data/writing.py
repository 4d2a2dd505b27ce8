"""Writer of one sample in the layout of MVTec 3D-AD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from mm3dad.files import write_with
from mm3dad.types import Sample


def write_sample(out: Path, folder: Path, stem: str, sample: Sample, has_mask: bool) -> list[Path]:
    """Write rgb, xyz and mask of a sample below `out / folder`; return the paths relative to `out`.

    Colour is rounded to 8 bits, xyz is float32 and losslessly packed.

    Raises:
        StorageError: the disk is full; no half file is left.
    """
    written = []
    if sample.rgb is not None:
        picture = Image.fromarray((sample.rgb * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
        written.append(folder / "rgb" / f"{stem}.png")
        write_with(out / written[-1], lambda path: picture.save(path, format="PNG"))
    if sample.xyz is not None:
        cloud = np.ascontiguousarray(sample.xyz.permute(1, 2, 0).numpy())
        written.append(folder / "xyz" / f"{stem}.tiff")
        write_with(out / written[-1], lambda path: tifffile.imwrite(path, cloud, photometric="rgb", compression="zlib", metadata=None))
    if has_mask and sample.mask is not None:
        mask = Image.fromarray(sample.mask.numpy().astype(np.uint8) * 255)
        written.append(folder / "gt" / f"{stem}.png")
        write_with(out / written[-1], lambda path: mask.save(path, format="PNG"))
    return written
