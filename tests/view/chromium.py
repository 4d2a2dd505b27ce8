"""Drives a real, headless Chromium through its DevTools protocol; tests skip, and say how to get it, where there is none."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # WebGL without a graphics card
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)
PATIENCE = 90.0  # seconds: the machine that runs this may be busy


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def differ(first: np.ndarray, second: np.ndarray) -> float:
    """Return the share of pixels that differ visibly."""
    return float((np.abs(first - second).max(-1) > 24).mean())


class Chromium:
    """One browser with one page."""

    def __init__(self, size: tuple[int, int] = (1100, 760)) -> None:
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip("no Chromium; apt-get install chromium, or make setup as root")
        connect = pytest.importorskip("websockets.sync.client", reason="no websockets; pip install 'mm3dad[dev]'").connect
        self.folder = tempfile.mkdtemp(prefix="mm3dad-chromium-")
        self.errors: list[str] = []
        self._number = 0
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self.folder}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            port = Path(self.folder) / "DevToolsActivePort"
            self._until(lambda: port.is_file() and port.read_text().count("\n") >= 1, "Chromium did not start")
            listed = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json", timeout=PATIENCE))
            address = next(page["webSocketDebuggerUrl"] for page in listed if page["type"] == "page")
            self._socket = connect(address, max_size=None)
            for domain in ("Runtime", "Page"):
                self.call(f"{domain}.enable")
            self.call("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _until(holds: Any, complaint: str) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < end, complaint
            time.sleep(0.05)

    def call(self, method: str, **options: Any) -> dict[str, Any]:
        """Send one command and return its result; scripts that fail on the page are kept in `errors`."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": options}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"].get("exception", {}).get("description", "unknown error"))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url: str) -> None:
        self.errors.clear()
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Evaluate a script and return its value."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until a script gives something true, and return it."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never came true: {script}; {self.errors}"
            time.sleep(0.1)
        return value

    def click(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self) -> np.ndarray:
        """Return what is seen, (h, w, 3) float32."""
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)

    def settle(self) -> np.ndarray:
        """Return what is seen when two looks in a row are alike and something dark is drawn: viser's clouds fade in, slowly in software."""
        last, end = self.screenshot(), time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(0.5)
            now = self.screenshot()
            if differ(last, now) < 1e-4 and now[200:, :700].min() < 90:
                return now
            last = now
        raise AssertionError("the picture never came to rest")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)
