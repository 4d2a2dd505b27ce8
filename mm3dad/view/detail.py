"""How much of a cloud a browser is sent: a first part at once, the whole where it is drawn quickly."""

from __future__ import annotations

import time
from typing import Any

FIRST = 80_000  # points; without a graphics card each frame of them takes a fifth of a second, of 640,000 one and a half
QUICK = 0.3  # seconds there and back for one look; without a graphics card it is 0.5 for 20,000 points, 1.8 for 70,000
_LOOK = 16  # pixels of its picture, which is thrown away


def draws_quickly(client: Any) -> bool | None:
    """Return whether a browser draws quickly, or over a quick line; None when it has gone.

    Args:
        client: of viser. It answers when what was sent before is drawn, so this waits for the first frame and times the next one.
    """
    try:
        client.get_render(_LOOK, _LOOK)
        start = time.perf_counter()
        client.get_render(_LOOK, _LOOK)
    except RuntimeError:  # viser's word for a closed page
        return None
    return time.perf_counter() - start < QUICK
