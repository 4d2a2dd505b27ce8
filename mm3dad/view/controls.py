"""The controls of the browser view: they show what the session holds and pass on what a person chooses."""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from mm3dad.view.browse import KINDS
from mm3dad.view.detail import FIRST
from mm3dad.view.session import Session, Side
from mm3dad.view.why import draw_why

ALL = "all"


class Acts(Protocol):
    """What the controls ask for."""

    def go(self, step: int) -> None:
        """Show the next or the previous sample."""

    def go_to(self, index: int) -> None:
        """Show one of the listed samples."""

    def choose(self, layer: str) -> None:
        """Show a layer."""

    def cut(self, threshold: float, highlight: bool) -> None:
        """Move the threshold, and highlight what is above it or not."""

    def resize(self, factor: float) -> None:
        """Draw the points larger or smaller."""

    def draw_all(self, whole: bool) -> None:
        """Draw every point of a large cloud, or the first part of it."""

    def filter(self, defect: str | None, kind: str | None, least: float | None) -> None:
        """List only some samples."""


class Controls:
    """The panel beside the cloud; out of sight until `appear`, because a page needs longer to build it than to draw the cloud.

    Args:
        gui: viser's.
        session: what is shown.
        acts: called when a person changes something, not when the program does.
    """

    def __init__(self, gui: Any, session: Session, acts: Acts) -> None:
        self._gui, self._session, self._quiet, self._head = gui, session, False, ""
        self.title = gui.add_markdown("")
        turn = gui.add_button_group("sample", ("previous", "next"))
        self.sample = gui.add_dropdown("go to", self.names(), initial_value=self.names()[session.index])
        self.layer = gui.add_dropdown("layer", ("RGB",), initial_value="RGB")
        self.size = gui.add_slider("point size", 0.3, 4.0, 0.1, 1.0)
        self.whole = gui.add_checkbox("all points", False, visible=False)
        self.threshold = gui.add_slider("threshold", 0.0, 1.0, 0.001, 0.0)
        self.above = gui.add_checkbox("highlight above", False)
        chosen = gui.add_folder("filter", expand_by_default=False)
        with chosen:
            defects = sorted({entry.defect for entry in session.all if entry.defect})
            self.defect = gui.add_dropdown("defect", (ALL, *defects), initial_value=ALL)
            self.kind = gui.add_dropdown("verdict", (ALL, *KINDS), initial_value=ALL)
            self.least = gui.add_number("score from", 0.0, step=0.1)
        self._why = gui.add_folder("why")
        with self._why:
            self._facts = gui.add_markdown("click a point")
        self._picture: Any = None
        self._parts = (self.title, turn, self.sample, self.layer, self.size, self.threshold, self.above, chosen, self._why)
        for part in self._parts:
            part.visible = False

        def on(control: Any, act: Any) -> None:
            control.on_update(lambda _: None if self._quiet else act())

        turn.on_click(lambda event: acts.go(1 if event.target.value == "next" else -1))
        on(self.sample, lambda: acts.go_to(self.names().index(self.sample.value)))
        on(self.layer, lambda: acts.choose(self.layer.value))
        on(self.size, lambda: acts.resize(self.size.value))
        on(self.whole, lambda: acts.draw_all(self.whole.value))
        for control in (self.threshold, self.above):
            on(control, lambda: acts.cut(float(self.threshold.value), self.above.value))
        for control in (self.defect, self.kind, self.least):
            on(control, lambda: acts.filter(_chosen(self.defect.value), _chosen(self.kind.value), float(self.least.value) or None))

    def appear(self) -> None:
        """Show the panel."""
        for part in self._parts:
            part.visible = True

    def names(self) -> list[str]:
        """Return the listed samples as they are called."""
        return [f"{number + 1}: {entry.title}" for number, entry in enumerate(self._session.shown)]

    @contextlib.contextmanager
    def _silent(self) -> Iterator[None]:
        """While the program sets a control, nobody is asked to act."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def refresh(self) -> None:
        """Show the current entry, its layers, and the range of its scores."""
        session, (first, *_) = self._session, self._session.sides
        fused, threshold = first.layers.scene.map, session.threshold
        known = np.zeros(1) if fused is None else fused[np.isfinite(fused)]
        top = 1.0 if fused is None else round_up(max(float(known.max(initial=0.0)), 1.2 * (threshold or 0.0), 1e-6))
        with self._silent():
            self.sample.options = self.names()
            self.sample.value = self.names()[session.index]
            self.layer.options = session.layer_names
            self.layer.value = session.layer_of(first)
            self.threshold.max, self.threshold.step = top, top / 1000
            self.threshold.value = min(top, threshold if threshold is not None else float(np.quantile(known, 0.98)))
            self.whole.visible = any(len(side.points) > FIRST for side in session.sides)
            self.threshold.disabled = self.above.disabled = fused is None
        self._head = "\n\n".join(_headline(side, number, len(session.sides)) for number, side in enumerate(session.sides))
        self.title.content = self._head

    def show_whole(self, whole: bool) -> None:
        """Show whether all points are drawn, and no longer why they are not."""
        with self._silent():
            self.whole.value = whole
        self.title.content = self._head

    def tell(self, text: str) -> None:
        """Put a line below the head line."""
        self.title.content = f"{self._head}\n\n*{html.escape(text)}*"

    def explain(self, side: Side | None) -> None:
        """Show what is known of the clicked point; None before a click."""
        if self._picture is not None:
            self._picture.remove()
            self._picture = None
        if side is None or side.picked is None:
            self._facts.content = "click a point"
            return
        rows = [*side.describe(side.picked), *(side.why.facts if side.why else ())]
        self._facts.content = "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
        if side.why is None:
            self._facts.content += "\n\n*matched normal patches: start with --model FOLDER*"
            return
        with self._why:
            self._picture = self._gui.add_image(draw_why(side.why), label=None)


def round_up(value: float) -> float:
    """Return the next number of three digits, for the end of a slider, which is written out."""
    unit = math.floor(math.log10(value)) - 2
    return float(f"{math.ceil(value / 10**unit)}e{unit}")


def _chosen(value: str) -> str | None:
    return None if value == ALL else value


def _headline(side: Side, number: int, count: int) -> str:
    entry = side.entry
    letter = f"{'AB'[number]}: " if count > 1 else ""
    verdict = "" if entry.kind is None else f", {entry.kind}"
    threshold = "" if entry.threshold is None else f" (threshold {entry.threshold:.3g}{verdict})"
    return f"**{letter}{html.escape(entry.title)}**{threshold}"
