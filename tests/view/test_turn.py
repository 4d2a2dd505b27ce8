from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from mm3dad.cli import main
from mm3dad.errors import MissingPackageError
from mm3dad.view import view_path
from mm3dad.view.scene import build_scene
from mm3dad.view.turn import SWINGS, write_turning
from tests.view.parts import make_sample, write_sample


def test_a_video_has_the_frames_of_the_gif(tmp_path):
    import av

    scene = build_scene(make_sample())
    write_turning(tmp_path / "a.gif", scene, size=(91, 120), frames=12)
    write_turning(tmp_path / "a.MP4", scene, size=(91, 120), frames=12)
    with av.open(tmp_path / "a.MP4") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == 12.5
        frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(stream)]
    assert len(frames) == SWINGS * 12 and frames[0].shape == (90, 120, 3)
    with Image.open(tmp_path / "a.gif") as gif:
        for number in (0, 5):
            gif.seek(number)
            still = np.asarray(gif.convert("RGB"), float)[:90]
            errors = [np.abs(frame - still).mean() for frame in frames[:12]]
            assert int(np.argmin(errors)) == number and errors[number] < 4


def test_view_writes_a_video(tmp_path, capsys):
    paths = write_sample(tmp_path / "data", make_sample())
    assert view_path(paths["xyz"], mp4=tmp_path / "a.mp4") == [tmp_path / "a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp" and (tmp_path / "a.mp4").stat().st_size < 2_000_000
    assert main(["view", str(paths["xyz"]), "--mp4", str(tmp_path / "a.avi")]) == 2
    assert "ends in .mp4" in capsys.readouterr().err


def test_without_the_extra_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mm3dad\[video\]', or write a GIF"):
        write_turning(tmp_path / "a.mp4", build_scene(make_sample()), frames=2)
    assert not (tmp_path / "a.mp4").exists()
