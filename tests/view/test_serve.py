from __future__ import annotations

import itertools
import socket
import sys
import types

import pytest

from mm3dad.errors import ConfigError, DataError, MissingPackageError
from mm3dad.view import window
from mm3dad.view.live import open_session, serve_path
from mm3dad.view.serve import check_port, load_viser
from mm3dad.view.turn import write_turning
from mm3dad.view.window import DesktopView, require_display
from tests.view.parts import make_evaluation


@pytest.fixture
def session(tmp_path):
    make_evaluation(tmp_path / "data", tmp_path / "out")
    found = open_session(tmp_path / "out")
    found.open()
    return found


# ---- the browser's needs


def test_a_port_in_use_or_out_of_range_is_refused(session):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .* --port"):
            check_port("127.0.0.1", port)
        if pytest.importorskip("viser", reason="no viser; pip install 'mm3dad[view]'"):
            with pytest.raises(ConfigError, match="cannot be used"):
                serve_path(session, "127.0.0.1", port, print)
    check_port("127.0.0.1", port)
    for wrong in (0, -1, 65536):
        with pytest.raises(ConfigError, match="between 1 and 65535"):
            check_port("127.0.0.1", wrong)
    with pytest.raises(ConfigError, match="cannot be used"):
        check_port("203.0.113.7", 8080)  # not an address of this machine


@pytest.mark.parametrize(("found", "complaint"), [(None, r"pip install 'mm3dad\[view\]'"), ("1.0.30", "found 1.0.30; pip install -U")])
def test_viser_missing_or_too_old_names_the_cure(monkeypatch, found, complaint):
    stand_in = None if found is None else types.SimpleNamespace(__version__=found)
    monkeypatch.setitem(sys.modules, "viser", stand_in)
    with pytest.raises(MissingPackageError, match=complaint):
        load_viser()


# ---- the window


def test_no_display_names_the_other_faces(monkeypatch, session):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="needs a display.*--serve"):
        DesktopView(session, print)
    monkeypatch.setenv("DISPLAY", ":4711")  # nobody answers there
    with pytest.raises(ConfigError, match="':4711' cannot be opened.*--html"):
        require_display()


class Window:
    """Records what a window is asked to draw."""

    def __init__(self) -> None:
        self.drawn, self.updates, self.options = [], 0, types.SimpleNamespace(point_size=0.0)

    def add_geometry(self, cloud, reset_bounding_box):
        self.drawn.append(cloud)

    def remove_geometry(self, cloud, reset_bounding_box):
        self.drawn.remove(cloud)

    def update_geometry(self, cloud):
        self.updates += 1

    def get_render_option(self):
        return self.options


def test_keys_change_layer_sample_threshold_and_size(monkeypatch, session):
    import numpy as np

    monkeypatch.setattr(window, "require_display", lambda: None)
    view = DesktopView(session, print)
    view._window = Window()
    view._draw(reset=True)
    (cloud,) = view._window.drawn
    assert len(cloud.points) == len(session.sides[0].points)
    keys = view.keys()
    keys["1"]()
    assert session.layer == "RGB" and np.allclose(np.asarray(cloud.colors) * 255, session.colors(session.sides[0]))
    keys["L"]()
    assert session.layer == session.layer_names[1]
    keys["9"]()  # there is no ninth layer
    assert session.layer == session.layer_names[1] and view._window.updates == 2
    keys["]"]()
    raised = session.threshold
    assert raised > 0 and session.highlight
    keys["["]()
    keys["T"]()
    assert 0 < session.threshold < raised and not session.highlight
    first = session.entry
    keys["N"]()
    assert session.entry is not first and view._window.drawn != [cloud] and len(view._window.drawn) == 1
    keys["P"]()
    assert session.entry is first
    keys["="]()
    assert view._window.options.point_size == 3.75


def test_a_lost_sample_does_not_close_the_window(monkeypatch, session):
    told = []
    monkeypatch.setattr(window, "require_display", lambda: None)
    view = DesktopView(session, told.append)

    def fail():
        raise DataError("it is gone; put it back")

    assert view._act(fail) is False and told == ["it is gone; put it back"]


# ---- turning pictures


def test_turning_picture_moves_and_comes_back(tmp_path, session):
    import numpy as np
    from PIL import Image, ImageSequence

    path = write_turning(tmp_path / "a.gif", session.sides[0].layers.scene, "curvature", size=(90, 120), frames=24)
    with Image.open(path) as picture:
        frames = [np.asarray(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(picture)]
        assert picture.info["loop"] == 0 and picture.size == (120, 90)
    assert len(frames) == 24 and all(np.abs(a - b).mean() > 0.5 for a, b in itertools.pairwise(frames))
    assert np.abs(frames[-1] - frames[0]).mean() < np.abs(frames[6] - frames[0]).mean()


def test_turning_picture_refuses_what_it_cannot_draw(tmp_path, session):
    scene = session.sides[0].layers.scene
    with pytest.raises(DataError, match="at least 2 frames"):
        write_turning(tmp_path / "a.gif", scene, frames=1)
    with pytest.raises(ConfigError, match="known: RGB"):
        write_turning(tmp_path / "a.gif", scene, "colour")
    scene.valid[:] = False
    with pytest.raises(DataError, match="--png"):
        write_turning(tmp_path / "a.gif", scene)
    assert not (tmp_path / "a.gif").exists()
