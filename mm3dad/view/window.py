"""The viewer on the desktop: Open3D draws the cloud, keys change what it shows."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from mm3dad.errors import ConfigError, DataError
from mm3dad.view.session import Session

CURE = "use --serve for a browser (works over SSH), or --html, --png and --gif for files"
HELP = (
    "keys: 1 to 9 or L layers, N / P next / previous sample, T points above the threshold, [ / ] lower / raise it, "
    "+ / - point size, R reset the view, Q close"
)


def require_display() -> None:
    """Refuse to open a window where none can be seen: Open3D would draw on and wait for keys that never come.

    Raises:
        ConfigError: no display, or one that does not answer.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigError(f"a window needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set; {CURE}")
    if sys.platform.startswith("linux") and not os.environ.get("WAYLAND_DISPLAY") and not _answers():
        raise ConfigError(f"the display {os.environ['DISPLAY']!r} cannot be opened; {CURE}")


def _answers() -> bool:
    """Say whether the X server of DISPLAY lets us in; True where there is no library to ask it."""
    import ctypes

    try:
        library = ctypes.CDLL("libX11.so.6")
    except OSError:
        return True
    library.XOpenDisplay.restype, library.XOpenDisplay.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    library.XCloseDisplay.argtypes = [ctypes.c_void_p]
    display = library.XOpenDisplay(None)
    if display:
        library.XCloseDisplay(display)
    return bool(display)


class DesktopView:
    """A window on a session.

    Args:
        session: what to show.
        tell: called with each line to print: the keys, the sample in view, what went wrong.

    Raises:
        ConfigError: there is no display.
    """

    def __init__(self, session: Session, tell: Callable[[str], object]) -> None:
        require_display()
        self.session, self._tell, self._size = session, tell, 3.0
        self._window: Any = None
        self._clouds: list[Any] = []

    def keys(self) -> dict[str, Callable[[], None]]:
        """Return what each key does."""
        layers = {str(number + 1): (lambda number=number: self._choose(number)) for number in range(9)}
        return {
            **layers,  # type: ignore[dict-item]
            "L": self._next_layer,
            "N": lambda: self._move(1),
            "P": lambda: self._move(-1),
            "T": self._toggle,
            "[": lambda: self._shift(-1),
            "]": lambda: self._shift(1),
            "=": lambda: self._resize(1.25),
            "-": lambda: self._resize(0.8),
        }

    def run(self) -> None:
        """Open the window and stay until it is closed.

        Raises:
            ConfigError: the display cannot be opened.
            DataError: the first sample cannot be shown.
        """
        import open3d

        sides = self.session.open()
        self._window = open3d.visualization.VisualizerWithKeyCallback()
        if not self._window.create_window("mm3dad", 1280, 860):
            raise ConfigError(f"Open3D cannot open a window on this display; {CURE}")
        try:
            for key, act in self.keys().items():
                self._window.register_key_callback(ord(key), lambda _, act=act: self._act(act))
            self._tell(HELP)
            self._draw(reset=True)
            self._window.get_render_option().point_size = self._size
            control = self._window.get_view_control()
            control.set_lookat([0.0, 0.0, 0.0])
            control.set_up([0.0, 1.0, 0.0])
            control.set_front([0.0, -0.6, 0.8])
            control.set_zoom(0.7 if len(sides) == 1 else 0.95)
            self._window.run()
        finally:
            self._window.destroy_window()

    def _act(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except DataError as error:  # a sample that cannot be read must not close the window
            self._tell(str(error))
        return False

    def _draw(self, reset: bool = False) -> None:
        """Replace the clouds by those of the current entry."""
        import open3d

        for cloud in self._clouds:
            self._window.remove_geometry(cloud, reset_bounding_box=False)
        self._clouds = []
        for number, side in enumerate(self.session.sides):
            cloud = open3d.geometry.PointCloud()
            cloud.points = open3d.utility.Vector3dVector(side.points + np.array([self.session.shift(number), 0, 0]))
            self._clouds.append(cloud)
        self._paint(add=True, reset=reset)
        titles = " | ".join(side.entry.title for side in self.session.sides)
        self._tell(titles)

    def _paint(self, add: bool = False, reset: bool = False) -> None:
        import open3d

        for cloud, side in zip(self._clouds, self.session.sides, strict=True):
            cloud.colors = open3d.utility.Vector3dVector(self.session.colors(side) / 255.0)
            if add:
                self._window.add_geometry(cloud, reset_bounding_box=reset)
            else:
                self._window.update_geometry(cloud)

    def _choose(self, number: int) -> None:
        names = self.session.layer_names
        if number < len(names):
            self.session.layer = names[number]
            self._paint()

    def _next_layer(self) -> None:
        names = self.session.layer_names
        self._choose((names.index(self.session.layer_of(self.session.sides[0])) + 1) % len(names))

    def _move(self, step: int) -> None:
        self.session.move(step)
        self.session.open()
        self._draw()

    def _toggle(self) -> None:
        self.session.highlight = not self.session.highlight
        self._paint()

    def _shift(self, direction: int) -> None:
        fused = self.session.sides[0].layers.scene.map
        if fused is None:
            return
        step = 0.02 * float(np.nanmax(fused))
        start = self.session.threshold if self.session.threshold is not None else float(np.nanquantile(fused, 0.98))
        self.session.threshold, self.session.highlight = max(0.0, start + direction * step), True
        self._paint()

    def _resize(self, factor: float) -> None:
        self._size = float(np.clip(self._size * factor, 1.0, 20.0))
        self._window.get_render_option().point_size = self._size
