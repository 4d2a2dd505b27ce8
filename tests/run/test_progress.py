import io
import sys

import pytest

from mm3dad.run import progress
from mm3dad.run.progress import format_seconds, track, track_stages


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch, terminal=False):
        self.now = 100.0
        self.text = io.StringIO()
        self.text.isatty = lambda: terminal
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(sys, "stderr", self.text)

    def walk(self, count, step):
        for index in range(count):
            yield index
            self.now += step

    @property
    def lines(self):
        return self.text.getvalue().splitlines()


def spend(clock, items, step):
    for _ in items:
        clock.now += step


def test_items_pass_unchanged_and_short_work_is_silent(monkeypatch):
    clock = Clock(monkeypatch)
    assert list(track(range(5), "read")) == [0, 1, 2, 3, 4]
    spend(clock, track(range(19), "read"), 0.1)
    assert clock.lines == []


def test_lines_come_at_most_every_five_seconds_with_time_left(monkeypatch):
    clock = Clock(monkeypatch)
    spend(clock, track(range(100), "fit bagel"), 1.0)
    assert clock.lines[0] == "fit bagel: 2/100, 1:38 min left"
    assert clock.lines[1] == "fit bagel: 7/100, 1:33 min left"
    assert clock.lines[-1] == "fit bagel: 100 done in 1:40 min"
    assert len(clock.lines) == 21


def test_unknown_length_counts(monkeypatch):
    clock = Clock(monkeypatch)
    spend(clock, track(iter(range(4)), "read"), 3.0)
    assert clock.lines[0] == "read: 1"
    spend(clock, track(iter(range(4)), "read", total=4), 3.0)
    assert "read: 1/4, 9 s left" in clock.lines


def test_terminal_shows_a_bar(monkeypatch):
    clock = Clock(monkeypatch, terminal=True)
    spend(clock, track(range(4), "read"), 3.0)
    assert "read" in clock.text.getvalue()
    assert "4/4" in clock.text.getvalue()
    before = len(clock.lines)
    spend(clock, track(range(4), "read"), 0.1)
    assert len(clock.lines) == before


def test_stages_have_their_own_time_left(monkeypatch):
    clock = Clock(monkeypatch)
    with track_stages("fit tire") as report:
        for done in range(1, 11):
            clock.now += 1
            report("features", done, 10)
        for done in range(1, 6):
            clock.now += 10
            report("coreset", done, 5)
    assert clock.lines[0] == "fit tire: features: 2/10, 8 s left"
    assert "fit tire: coreset: 2/5, 30 s left" in clock.lines
    assert clock.lines[-1] == "fit tire: coreset: 5 done in 1:00 min"


def test_a_loss_in_brackets_is_no_new_stage_and_a_resumed_one_starts_late(monkeypatch):
    clock = Clock(monkeypatch)
    with track_stages("fit tire") as report:
        for done in range(60, 101):
            report(f"training (loss {1 / done:.3f})", done, 100)
            clock.now += 1
    assert clock.lines[0] == "fit tire: training (loss 0.016): 62/100, 38 s left"
    assert "fit tire: training (loss 0.015): 67/100, 33 s left" in clock.lines


def test_an_error_inside_the_loop_passes_through(monkeypatch):
    Clock(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        for item in track([1, 0], "divide"):
            1 / item


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (185, "3:05 min"), (4020, "1:07 h")])
def test_seconds_read_well(seconds, text):
    assert format_seconds(seconds) == text
