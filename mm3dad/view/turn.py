"""`write_turning`: one sample as a picture or a video that swings to and fro, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from mm3dad import files
from mm3dad.errors import DataError, MissingPackageError
from mm3dad.view.cloud import splat
from mm3dad.view.colors import Array
from mm3dad.view.layers import Layers, find_layer
from mm3dad.view.scene import Scene, as_colors

FRAMES = 30
SWINGS = 3  # in a video, which unlike a GIF does not begin again by itself
SWING = 50.0  # degrees to either side: the sensor saw one side, from behind the part is hollow
MILLISECONDS = 80


def write_turning(
    path: str | Path,
    scene: Scene,
    layer: str | None = None,
    *,
    threshold: float | None = None,
    size: tuple[int, int] = (360, 480),
    frames: int = FRAMES,
    dark: bool = True,
) -> Path:
    """Write the cloud as it swings before the eye, as people turn a part in their hands: a GIF, or a video where the name ends in .mp4.

    Args:
        path: the GIF or MP4.
        scene: with a cloud.
        layer: how to colour the points; the first of `Layers` when None.
        threshold: image threshold, keeps a good part cold.
        size: (h, w) of the picture in pixels.
        frames: of one swing, >= 2.
        dark: dark background.

    Raises:
        DataError: no measured point, or fewer than 2 frames.
        ConfigError: no such layer.
        MissingPackageError: an MP4 without the extra `video`.
        StorageError: the file cannot be written.
    """
    encode = _encode_mp4 if Path(path).suffix.lower() == ".mp4" else _encode_gif
    if scene.xyz is None or not scene.valid.any():
        raise DataError(f"sample {scene.meta.id!r} has no measured point to turn; write a still picture instead (--png)")
    if frames < 2:
        raise DataError(f"a turning picture needs at least 2 frames, got {frames}; {FRAMES} is a good number")
    layers = Layers(scene, threshold)
    colors = as_colors(layers.paint(layers.first if layer is None else find_layer(layers, layer)))
    phase = 2 * np.pi * np.arange(frames) / frames
    pictures = [
        splat(scene.xyz, scene.valid, colors, size, SWING * float(np.sin(turn)), 50 + 12 * float(np.cos(turn)), dark=dark, steady=True)
        for turn in phase
    ]
    return files.write_bytes(path, encode(pictures))


def _encode_gif(pictures: Sequence[Array]) -> bytes:
    from PIL import Image

    # One palette for all frames, so that nothing flickers, and one that covers rare colours: the hot ones are few and matter most.
    some = Image.fromarray(np.concatenate(pictures[:: max(1, len(pictures) // 4)]))
    palette = some.quantize(256, Image.Quantize.MAXCOVERAGE)
    stored = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    stored[0].save(buffer, "GIF", save_all=True, append_images=stored[1:], duration=MILLISECONDS, loop=0, optimize=False)
    return buffer.getvalue()


def _encode_mp4(pictures: Sequence[Array]) -> bytes:
    """H.264 in 4:2:0, which browsers and slides play; sizes are even there, so an odd row or column goes."""
    try:
        from av import VideoFrame
        from av import open as open_container  # in memory: files.py writes
    except ImportError:
        raise MissingPackageError("a video needs av, which is not installed; pip install 'mm3dad[video]', or write a GIF (--gif)") from None
    buffer = io.BytesIO()
    with open_container(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(1000, MILLISECONDS), options={"crf": "20"})
        stream.height, stream.width = (side - side % 2 for side in pictures[0].shape[:2])
        stream.pix_fmt = "yuv420p"
        for picture in [*pictures] * SWINGS:
            even = np.ascontiguousarray(picture[: stream.height, : stream.width])
            container.mux(stream.encode(VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
