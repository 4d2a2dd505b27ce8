from __future__ import annotations

import time

import pytest

from mm3dad.view import detail


class StandIn:
    """A browser that needs `seconds` for a frame, or is closed at one of them."""

    def __init__(self, seconds: float = 0.0, gone_at: int = 9) -> None:
        self.seconds, self.gone_at, self.asked = seconds, gone_at, 0

    def get_render(self, height: int, width: int) -> None:
        self.asked += 1
        if self.asked == self.gone_at:
            raise RuntimeError("the client disconnected before returning a frame")
        time.sleep(self.seconds if self.asked > 1 else 3 * self.seconds)


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    monkeypatch.setattr(detail, "QUICK", 0.1)


@pytest.mark.parametrize(("browser", "quick"), [(StandIn(), True), (StandIn(0.06), True), (StandIn(0.15), False)])
def test_the_second_frame_tells_a_quick_browser_from_a_slow_one(browser, quick):
    assert detail.draws_quickly(browser) is quick and browser.asked == 2  # what comes with the first, it does not count


@pytest.mark.parametrize("frame", [1, 2])
def test_a_closed_page_says_nothing_of_its_speed(frame):
    assert detail.draws_quickly(StandIn(gone_at=frame)) is None
