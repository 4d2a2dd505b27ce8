"""The viewer in a browser: viser draws the cloud and the controls, `Session` says what they show. Works over SSH with a forwarded port."""

from __future__ import annotations

import contextlib
import html
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from mm3dad.errors import DataError, Mm3dadError
from mm3dad.view.browse import KINDS
from mm3dad.view.serve import LOOPBACK, check_port, load_viser
from mm3dad.view.session import Session, Side
from mm3dad.view.why import draw_why

ALL = "all"


class BrowserView:
    """A running viewer.

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
        self._lock, self._quiet, self._opened = threading.RLock(), False, 0
        self._clouds: list[Any] = []
        self._drawn: list[np.ndarray] = []
        self.server = viser.ViserServer(host=host, port=port, label="mm3dad", verbose=False)
        self.server.gui.configure_theme(control_width="medium", show_logo=False, show_share_button=False)
        self.server.gui.main_panel.dock_right()
        self.server.initial_camera.position = (0.0, -1.25, 1.5)
        self.server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self._build()
        self.show()

    # --- controls ----------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        gui, session = self.server.gui, self.session
        self._title = gui.add_markdown("")
        turn = gui.add_button_group("sample", ("previous", "next"))
        self._sample = gui.add_dropdown("go to", self._names(), initial_value=self._names()[session.index])
        self._layer = gui.add_dropdown("layer", ("RGB",), initial_value="RGB")
        self._size = gui.add_slider("point size", 0.3, 4.0, 0.1, 1.0)
        self._threshold = gui.add_slider("threshold", 0.0, 1.0, 0.001, 0.0)
        self._above = gui.add_checkbox("highlight above", False)
        with gui.add_folder("filter", expand_by_default=False):
            defects = sorted({entry.defect for entry in session.all if entry.defect})
            self._defect = gui.add_dropdown("defect", (ALL, *defects), initial_value=ALL)
            self._kind = gui.add_dropdown("verdict", (ALL, *KINDS), initial_value=ALL)
            self._least = gui.add_number("score from", 0.0, step=0.1)
        self._why = gui.add_folder("why")
        with self._why:
            self._facts = gui.add_markdown("click a point")
        self._pictures: list[Any] = []
        turn.on_click(lambda event: self._go(1 if event.target.value == "next" else -1))
        self._sample.on_update(lambda _: self._go_to(self._sample.value))
        self._layer.on_update(lambda _: self._choose_layer())
        self._size.on_update(lambda _: self._resize())
        self._threshold.on_update(lambda _: self._choose_threshold())
        self._above.on_update(lambda _: self._choose_threshold())
        for control in (self._defect, self._kind, self._least):
            control.on_update(lambda _: self._filter())

        @self.server.scene.on_click()
        def _(event: Any) -> None:
            self.click(event.ray_origin, event.ray_direction)

    def _names(self) -> list[str]:
        return [f"{number + 1}: {entry.title}" for number, entry in enumerate(self.session.shown)]

    @contextlib.contextmanager
    def _silent(self) -> Iterator[None]:
        """While the program sets a control, its callback must not run."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _go(self, step: int) -> None:
        with self._lock:
            self.session.move(step)
            self.show()

    def _go_to(self, name: str) -> None:
        with self._lock:
            if not self._quiet and name in self._names():
                self.session.index = self._names().index(name)
                self.show()

    def _choose_layer(self) -> None:
        with self._lock:
            if not self._quiet:
                self.session.layer = self._layer.value
                self.paint()

    def _choose_threshold(self) -> None:
        with self._lock:
            if not self._quiet:
                self.session.threshold, self.session.highlight = float(self._threshold.value), self._above.value
                self.paint()

    def _resize(self) -> None:
        with self._lock:
            for cloud, side in zip(self._clouds, self.session.sides, strict=False):
                cloud.point_size = 0.9 * side.spacing * self._size.value

    def _filter(self) -> None:
        with self._lock:
            if self._quiet:
                return
            least = float(self._least.value)
            try:
                self.session.filter(
                    defect=None if self._defect.value == ALL else self._defect.value,
                    kind=None if self._kind.value == ALL else self._kind.value,
                    least=least if least > 0 else None,
                )
            except DataError as error:
                self._say(error)
                return
            self.show()

    def _say(self, error: Mm3dadError) -> None:
        for client in self.server.get_clients().values():
            client.add_notification("mm3dad", str(error), auto_close_seconds=8.0)
        self._title.content = f"**{html.escape(str(error))}**"

    # --- what is drawn -----------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Draw the current entry: at once what was kept, then what the model says, where there is one."""
        with self._lock:
            self._opened += 1
            opened = self._opened
            try:
                sides = self.session.open(quick=True)
            except Mm3dadError as error:
                self._say(error)
                return
            self._draw(sides)
            if any(side.entry.model is not None for side in sides):
                self._title.content += "\n\n*the model is at work ...*"
                threading.Thread(target=self._ask_model, args=(opened,), daemon=True).start()

    def _ask_model(self, opened: int) -> None:
        """Score and explain the sample, unless another one was opened in the meantime."""
        with self._lock:
            if opened != self._opened:
                return
            try:
                self._draw(self.session.open())
            except Mm3dadError as error:
                self._say(error)

    def _draw(self, sides: list[Side]) -> None:
        with self.server.atomic():
            if len(sides) == len(self._drawn) and all(map(np.array_equal, self._drawn, (side.points for side in sides))):
                self.paint()  # the model's answer to what is in view: a new cloud would blink
            else:
                self._replace(sides)
            with self._silent():
                self._sample.options = self._names()
                self._sample.value = self._names()[self.session.index]
                self._layer.options = self.session.layer_names
                self._layer.value = self.session.layer_of(sides[0])
                self._range_threshold()
            self._title.content = "\n\n".join(_headline(side, number, len(sides)) for number, side in enumerate(sides))
            self._explain(None)
        threading.Thread(target=_prepare, args=(sides,), daemon=True).start()

    def _replace(self, sides: list[Side]) -> None:
        for cloud in self._clouds:
            cloud.remove()
        self._drawn = [side.points for side in sides]
        self._clouds = [
            self.server.scene.add_point_cloud(
                f"/cloud{number}",
                side.points,
                self.session.colors(side),
                point_size=0.9 * side.spacing * self._size.value,
                point_shape="square",
                point_shading="flat",
                precision="float32",
                position=(self.session.shift(number), 0.0, 0.0),
            )
            for number, side in enumerate(sides)
        ]

    def _range_threshold(self) -> None:
        """Fit the slider to the scores of the current sample."""
        fused, threshold = self.session.sides[0].layers.scene.map, self.session.threshold
        known = np.zeros(1) if fused is None else fused[np.isfinite(fused)]
        top = max(float(known.max(initial=0.0)), 1.2 * (threshold or 0.0), 1e-6)
        self._threshold.min, self._threshold.max, self._threshold.step = 0.0, top, top / 1000
        self._threshold.value = min(top, threshold if threshold is not None else float(np.quantile(known, 0.98)))
        self._threshold.disabled = self._above.disabled = fused is None

    def paint(self) -> None:
        """Colour the points anew; their places stay."""
        with self._lock, self.server.atomic():
            for cloud, side in zip(self._clouds, self.session.sides, strict=True):
                cloud.colors = self.session.colors(side)

    def click(self, origin: tuple[float, float, float], direction: tuple[float, float, float]) -> None:
        """Explain the point that a ray meets."""
        with self._lock:
            found = self.session.pick(origin, direction)
            if found is None:
                return
            try:
                side = self.session.choose(*found)
            except Mm3dadError as error:
                self._say(error)
                return
            self._explain(side)
            self.paint()

    def _explain(self, side: Side | None) -> None:
        for picture in self._pictures:
            picture.remove()
        self._pictures = []
        if side is None or side.picked is None:
            self._facts.content = "click a point"
            return
        rows = [*side.describe(side.picked), *(side.why.facts if side.why else ())]
        self._facts.content = "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
        if side.why is None:
            self._facts.content += "\n\n*matched normal patches: start with --model FOLDER*"
            return
        with self._why:
            self._pictures = [self.server.gui.add_image(draw_why(side.why), label=None)]

    def wait(self) -> None:
        """Serve until the process is interrupted."""
        try:
            while True:
                time.sleep(3600)
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop serving; a model that is at work has nobody to tell any more."""
        with self._lock:
            self._opened += 1
            self.server.stop()


def _prepare(sides: list[Side]) -> None:
    """Compute the layers that are not in view, so that a switch to them is quick."""
    for side in sides:
        for layer in side.layers:
            side.layers[layer]


def _headline(side: Side, number: int, count: int) -> str:
    entry = side.entry
    letter = f"{'AB'[number]}: " if count > 1 else ""
    verdict = "" if entry.kind is None else f", {entry.kind}"
    threshold = "" if entry.threshold is None else f" (threshold {entry.threshold:.3g}{verdict})"
    return f"**{letter}{html.escape(entry.title)}**{threshold}"
