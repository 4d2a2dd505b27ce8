"""Progress and time left on stderr, for work that takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
QUIET = 2.0  # seconds before anything is shown
PERIOD = 5.0  # seconds between lines when stderr is not a terminal


def format_seconds(seconds: float) -> str:
    """Return "42 s", "3:05 min" or "1:07 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class _Display:
    """One line of progress: a bar on a terminal, else text at most every five seconds; nothing in the first two."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._due = self._start + QUIET
        self._stage = ""
        self._stage_start = self._previous = self._start
        self._first = 0  # where the stage began, when it goes on from an interrupted call
        self._bar: Any = None
        self._task: Any = None
        self._last: tuple[str, int, int | None] | None = None
        self._shown = False

    def update(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        # What stands in brackets, such as a loss, may change within a stage.
        if (name := stage.partition(" (")[0]) != self._stage:
            self._stage, self._stage_start = name, self._previous
            self._first = done if done > 1 else 0
        self._previous = now
        self._last = (stage, done, total)
        if now < self._due:
            return
        self._shown = True
        if sys.stderr.isatty():
            self._show_bar(stage, done, total)
            return
        self._due = now + PERIOD
        text = f"{stage}: {done}"
        if total:
            text += f"/{total}"
            if self._first < done < total:
                text += f", {format_seconds((now - self._stage_start) / (done - self._first) * (total - done))} left"
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def _show_bar(self, stage: str, done: int, total: int | None) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
        if self._task is None or self._task[0] != self._stage:
            self._task = (self._stage, self._bar.add_task(stage, total=total))
        self._bar.update(self._task[1], description=stage, completed=done, total=total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and self._last is not None:
            stage, done, _ = self._last
            sys.stderr.write(f"{stage}: {done} done in {format_seconds(time.monotonic() - self._start)}\n")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show on stderr how far the loop has come and the time left.

    Args:
        items: what to loop over.
        description: what is being done, e.g. "predict bagel".
        total: number of items where `items` has no length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    display = _Display()
    try:
        for done, item in enumerate(items, 1):
            yield item
            display.update(description, done, total)
    finally:
        display.close()


@contextmanager
def track_stages(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield progress(stage, done, total) for work of several stages, such as fitting; time left is the stage's.

    Args:
        title: goes before the name of each stage.
    """
    display = _Display()
    try:
        yield lambda stage, done, total: display.update(f"{title}: {stage}", done, total)
    finally:
        display.close()
