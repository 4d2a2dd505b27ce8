"""Draw the pictures of docs/viewer.md in a real Chromium, or time the first frame there; `benchmarks.waits` measures the rest.

    python -m benchmarks.viewer --root data/synthetic --out docs/images [--model models/cookie]
    python -m benchmarks.viewer --frame [--size 800]

The 3D page at an explained place, the browser view, and a turning picture, all of one defect of the synthetic cookie. The first frame: from
the start of `mm3dad view --serve` until an open Chromium, without a graphics card, has drawn a plate of `size` x `size` points.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mm3dad import files
from mm3dad.run.fit import fit_detector
from mm3dad.view import view_path
from mm3dad.view.live import open_session
from tests.view.chromium import Chromium, free_port
from tests.view.parts import make_sample, write_sample

CATEGORY, SAMPLE = "cookie", "test/bump/001"


def keep(picture: np.ndarray, path: Path) -> Path:
    """Write a screenshot as JPEG."""
    return files.write_with(path, lambda temporary: Image.fromarray(picture.astype(np.uint8)).save(temporary, "JPEG", quality=82))


def draw_page(browser: Chromium, root: Path, model: Path, out: Path) -> None:
    """Draw the 3D page and the turning picture."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "why.html"
        view_path(root / CATEGORY / "test", page, gif=out / "viewer-turn.gif", sample_id=SAMPLE, model=model)
        for name, hash in (("viewer-page.jpg", "#why=1"), ("viewer-groups.jpg", "#layer=groups&why=1")):
            browser.open("about:blank")
            browser.open(page.as_uri() + hash)
            browser.wait("document.body && document.body.dataset.state")
            time.sleep(1)
            keep(browser.screenshot(), out / name)


def draw_browser_view(browser: Chromium, root: Path, model: Path, out: Path) -> None:
    """Draw the browser view after a click on the most anomalous point."""
    from mm3dad.view.browser import BrowserView

    view = BrowserView(open_session(root / CATEGORY / "test", sample_id=SAMPLE, model=model), port=free_port())
    try:
        view.show()
        browser.open(view.url)
        browser.wait("document.querySelector('canvas') && document.body.innerText.includes('score')")
        browser.wait(f"document.body.innerText.includes('{SAMPLE}, score')")
        side = view.session.sides[0]
        row, column = side.entry.explanation.peaks(1)[0]
        point = side.points[int(np.abs(side.pixel - (row * side.layers.scene.size[1] + column)).argmin())]
        view.click(tuple(point + np.array([0, 0, 3.0])), (0.0, 0.0, -1.0))
        browser.wait("[...document.querySelectorAll('img')].some((picture) => picture.naturalHeight > 500)")
        browser.run("[...document.querySelectorAll('button')].find((one) => one.closest('[class*=Notification]'))?.click()")
        keep(browser.settle(), out / "viewer-browser.jpg")
    finally:
        view.stop()


def time_frames(browser: Chromium, size: int, repeats: int = 1) -> list[tuple[float, float]]:
    """Return, of each repeat, the seconds until the address is told and until the cloud is drawn."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        sample = write_sample(Path(folder), make_sample(size))["xyz"]
        for _ in range(repeats):
            browser.run("document.body.innerHTML = ''")
            start = time.perf_counter()
            words = [sys.executable, "-m", "mm3dad", "view", sample, "--serve", "--port", str(free_port())]
            process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            try:
                assert process.stdout is not None
                url = process.stdout.readline().split()[1]
                told = time.perf_counter() - start
                browser.open(url)
                browser.wait("document.querySelector('canvas') !== null")
                while browser.screenshot()[300:500, 400:600].mean() > 200:  # the page is white until the grey plate is there
                    assert time.perf_counter() - start < 60, "the cloud was never drawn"
                found.append((told, time.perf_counter() - start))
            finally:
                process.terminate()
                process.wait()
    return found


def main() -> None:
    """Draw, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="synthetic data; `mm3dad prepare synthetic` makes them")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    parser.add_argument("--model", type=Path, help="duet fitted on the cookie; fitted now when left out")
    parser.add_argument("--frame", action="store_true", help="time the first frame instead of drawing")
    parser.add_argument("--size", type=int, default=800, help="height and width of the sample of --frame")
    arguments = parser.parse_args()
    if arguments.frame == (arguments.root is not None):
        parser.error("give --root, the synthetic data to draw, or --frame")
    if arguments.frame:
        browser = Chromium((1240, 800))
        try:
            for told, drawn in time_frames(browser, arguments.size):
                print(f"address after {told:.2f} s, drawn in Chromium after {drawn:.2f} s")
        finally:
            browser.close()
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or Path(folder)
        if arguments.model is None:
            fit_detector("duet", "synthetic", arguments.root, model, categories=[CATEGORY], shots=16)
        browser = Chromium((1240, 800))
        try:
            draw_page(browser, arguments.root, model, arguments.out)
            draw_browser_view(browser, arguments.root, model, arguments.out)
        finally:
            browser.close()


if __name__ == "__main__":
    main()
