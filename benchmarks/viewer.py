"""Draw the pictures of docs/viewer.md in a real Chromium, or time the first frame there; `benchmarks.waits` measures the rest.

    python -m benchmarks.viewer --root data/synthetic --out docs/images [--model models/cookie]
    python -m benchmarks.viewer --frame [--size 800] [--repeats 5]

The 3D page at an explained place, the browser view, and a turning picture, all of one defect of the synthetic cookie. The first frame: from
the start of `mm3dad view` until an open Chromium, without a graphics card, has drawn a plate of `size` x `size` points. The same of 10 x 10
points says what Python, viser and Chromium take for themselves.
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
from tests.view.chromium import PATIENCE, Chromium, free_port
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
        view.draw_all(True)
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


PLATE = """(() => { const canvas = document.querySelector('body[data-state=ready] #scene, canvas[data-engine]');
const gl = canvas && canvas.getContext(canvas.id === 'scene' ? 'webgl' : 'webgl2');  // asked for sooner, the page could not have its own
if (!gl) return false;
const pixel = new Uint8Array(4);
gl.readPixels(canvas.width / 2, canvas.height / 2, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
return pixel[3] === 255 && pixel[0] < 200 && new Promise((done) => requestAnimationFrame(() => done(true))); })()"""


def time_frame(browser: Chromium, face: str, sample: str, folder: Path) -> tuple[float, float]:
    """Return the seconds from the start of `mm3dad view` until the address is told or the file is there, and until the cloud is drawn.

    Drawn: the middle of the page's canvas has the grey of the plate, and the frame after it begins. A picture counts as drawn when written.
    """
    browser.open("about:blank")
    time.sleep(1)
    target = folder / f"frame.{face}"
    port = free_port()
    words = ["--serve", "--port", str(port)] if face == "serve" else [f"--{face}", str(target)]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "mm3dad", "view", sample, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline() if face == "serve" else process.wait()
        told = time.perf_counter() - start
        if face == "png":
            return told, told
        browser.open(f"http://127.0.0.1:{port}" if face == "serve" else target.as_uri())
        while not browser.run(PLATE):
            assert time.perf_counter() - start < PATIENCE, "the cloud was never drawn"
            time.sleep(0.02)
        drawn = time.perf_counter() - start
        assert browser.screenshot()[300:500, 400:600].mean() < 200, "the plate is not on the screen"
        return told, drawn
    finally:
        process.terminate()
        process.wait()


def time_frames(size: int, repeats: int) -> None:
    """Print the median of each face, with the least and the most."""
    browser = Chromium((1240, 800))
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for face, side in (("serve", 10), ("serve", size), ("html", size), ("png", size)):
                sample = write_sample(folder / str(side), make_sample(side))["xyz"]
                found = [time_frame(browser, face, sample, folder) for _ in range(repeats)]
                told, drawn = (f"{np.median(one):.2f} s ({min(one):.2f} to {max(one):.2f})" for one in zip(*found, strict=True))
                print(f"--{face}, {side} x {side} points: told or written after {told}, drawn after {drawn}")
    finally:
        browser.close()


def main() -> None:
    """Draw, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="synthetic data; `mm3dad prepare synthetic` makes them")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    parser.add_argument("--model", type=Path, help="duet fitted on the cookie; fitted now when left out")
    parser.add_argument("--frame", action="store_true", help="time the first frame instead of drawing")
    parser.add_argument("--size", type=int, default=800, help="height and width of the sample of --frame")
    parser.add_argument("--repeats", type=int, default=5, help="of each row of --frame")
    arguments = parser.parse_args()
    if arguments.frame == (arguments.root is not None):
        parser.error("give --root, the synthetic data to draw, or --frame")
    if arguments.frame:
        return time_frames(arguments.size, arguments.repeats)
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
