"""The viewer in a browser: viser draws the cloud, `Session` says what is shown. Works over SSH with a forwarded port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mm3dad.errors import Mm3dadError
from mm3dad.view.controls import Controls
from mm3dad.view.detail import FIRST, draws_quickly
from mm3dad.view.serve import LOOPBACK, check_port, hushed, load_viser
from mm3dad.view.session import Session, Side

CLOSED = 1.35  # size of a point in spacings, so that a cloud seen from the side has no gaps
PAUSE = 0.5  # seconds from a page's connection on that belong to its first frame
Vector = tuple[float, float, float]


class BrowserView:
    """A running viewer; it listens at once, so that a page can load while `show` reads the first sample.

    Args:
        session: what to show.
        host: address to listen on; anything but the loopback shows the data to the network.
        port: to listen on.

    Raises:
        MissingPackageError: viser is missing or too old.
        ConfigError: the port cannot be had.
    """

    def __init__(self, session: Session, host: str = LOOPBACK, port: int = 8080) -> None:
        viser = load_viser()
        check_port(host, port)
        self.session, self.url = session, f"http://{host}:{port}"
        self._lock, self._tried, self._opened, self._factor = threading.RLock(), threading.Event(), 0, 1.0
        self._clouds: list[Any] = []
        self._drawn: list[np.ndarray] = []
        self._kept: list[slice | np.ndarray] = []
        self._whole: bool | None = None  # all points; None until a browser has shown how quickly it draws, or a person has chosen
        with hushed():
            self.server = viser.ViserServer(host=host, port=port, label="mm3dad", verbose=False)
        self.server.gui.configure_theme(control_width="medium", show_logo=False, show_share_button=False)
        self.server.gui.main_panel.dock_right()
        self.server.scene.configure_environment_map(None)  # points take no light, and the page would fade in while it loads
        self.server.scene.configure_default_lights(False)
        far = 1.0 if len(session.paired) else 0.72  # two clouds side by side need more room
        self.server.initial_camera.position = (0.0, -1.25 * far, 1.5 * far)
        self.server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self.controls = Controls(self.server.gui, session, self)
        self.server.scene.on_click()(lambda event: self.click(event.ray_origin, event.ray_direction))
        self.server.on_client_connect(self._greet)

    def _try(self, act: Callable[[], object]) -> bool:
        """Do something, one at a time; what goes wrong is told, and the viewer goes on."""
        with self._lock:
            try:
                act()
            except Mm3dadError as error:
                self.controls.tell(str(error))
                return False
            return True

    # --- what a person asks for ----------------------------------------------------------------------------------------------

    def go(self, step: int) -> None:
        """Show the next or the previous sample."""
        with self._lock:
            self.session.move(step)
            self.show()

    def go_to(self, index: int) -> None:
        """Show one of the listed samples."""
        with self._lock:
            self.session.index = index
            self.show()

    def choose(self, layer: str) -> None:
        """Show a layer."""
        with self._lock:
            self.session.layer = layer
            self.paint()

    def cut(self, threshold: float, highlight: bool) -> None:
        """Move the threshold, and highlight what is above it or not."""
        with self._lock:
            self.session.threshold, self.session.highlight = threshold, highlight
            self.paint()

    def resize(self, factor: float) -> None:
        """Draw the points larger or smaller."""
        with self._lock:
            self._factor = factor
            for cloud, side, kept in zip(self._clouds, self.session.sides, self._kept, strict=True):
                cloud.point_size = self._point_size(side, kept)

    def draw_all(self, whole: bool) -> None:
        """Draw every point of a large cloud, or the first part of it."""
        with self._lock, self.server.atomic():
            self._whole = whole
            self.controls.show_whole(whole)
            self._replace(self.session.sides)

    def filter(self, defect: str | None, kind: str | None, least: float | None) -> None:
        """List only some samples."""
        if self._try(lambda: self.session.filter(defect=defect, kind=kind, least=least)):
            self.show()

    def click(self, origin: Vector, direction: Vector) -> None:
        """Explain the point that a ray meets."""
        with self._lock:
            found = self.session.pick(origin, direction)
            if found is not None and self._try(lambda: self.session.choose(*found)):
                self.controls.explain(self.session.sides[found[0]])
                self.paint()

    # --- what is drawn -----------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Draw the current entry: at once what was kept, then what the model says, where there is one."""
        with self._lock:
            self._opened += 1
            drawn = self._try(lambda: self._draw(self.session.open(quick=True)))
            self._tried.set()
            if drawn and any(side.entry.model for side in self.session.sides):
                self.controls.tell("the model is at work ...")
                threading.Thread(target=self._ask_model, args=(self._opened,), daemon=True).start()

    def _greet(self, client: Any) -> None:
        """Show a page the panel when it may have drawn the cloud, all points when it draws quickly; then prepare the other layers."""
        self._tried.wait()
        time.sleep(PAUSE)
        self.controls.appear()
        quick = draws_quickly(client) if self._whole is None and self._clouds else None
        with self._lock:
            if quick is not None and self._whole is None:
                self._whole = quick
                if quick:
                    self.draw_all(True)
                elif (shown := sum(len(cloud.points) for cloud in self._clouds)) < (count := sum(map(len, self._drawn))):
                    self.controls.tell(f"this browser draws slowly: {shown:,} of {count:,} points are shown; 'all points' shows the rest")
        _prepare(self.session.sides)

    def _ask_model(self, opened: int) -> None:
        """Score and explain the sample, unless another one was opened in the meantime."""
        with self._lock:
            if opened == self._opened:
                self._try(lambda: self._draw(self.session.open()))

    def _draw(self, sides: list[Side]) -> None:
        with self.server.atomic():
            if len(sides) == len(self._drawn) and all(map(np.array_equal, self._drawn, (side.points for side in sides))):
                self.paint()  # the model's answer to what is in view: a new cloud would blink
            else:
                self._replace(sides)
            self.controls.refresh()
            self.controls.explain(None)
        if self.server.get_clients():  # before the first has come, `_greet` does it: the page needs the processor now
            threading.Thread(target=_prepare, args=(sides,), daemon=True).start()

    def _replace(self, sides: list[Side]) -> None:
        for cloud in self._clouds:
            cloud.remove()
        self._drawn = [side.points for side in sides]
        self._kept = [slice(None) if self._whole or len(side.points) <= FIRST else side.thin(FIRST) for side in sides]
        self._clouds = [
            self.server.scene.add_point_cloud(
                f"/cloud{number}",
                side.points[kept],
                self.session.colors(side)[kept],
                point_size=self._point_size(side, kept),
                point_shape="square",
                point_shading="flat",
                precision="float32",
                position=(self.session.shift(number), 0.0, 0.0),
            )
            for number, (side, kept) in enumerate(zip(sides, self._kept, strict=True))
        ]

    def _point_size(self, side: Side, kept: slice | np.ndarray) -> float:
        return CLOSED * side.spacing * self._factor * float(np.sqrt(len(side.points) / len(side.points[kept])))

    def paint(self) -> None:
        """Colour the points anew; their places stay."""
        with self._lock, self.server.atomic():
            for cloud, side, kept in zip(self._clouds, self.session.sides, self._kept, strict=True):
                cloud.colors = self.session.colors(side)[kept]

    def run(self) -> None:
        """Show the first sample and serve until the process is interrupted, which is how a person ends it and no failure."""
        try:
            self.show()
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop serving; a model that is at work has nobody to tell any more."""
        with self._lock, hushed():
            self._opened += 1
            self.server.stop()


def _prepare(sides: list[Side]) -> None:
    """Compute the layers that are not in view, so that a switch to them is quick."""
    for side in sides:
        for layer in side.layers:
            side.layers[layer]
