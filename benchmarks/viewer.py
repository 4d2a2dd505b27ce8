"""Draw the pictures of docs/viewer.md in a real Chromium, and measure what a user of the viewer waits for.

    python -m benchmarks.viewer --root data/synthetic --out docs/images [--model models/cookie] [--size 800]

Pictures: the 3D page at an explained place, the browser view, and a turning picture, all of one defect of the synthetic cookie. Times: of
a plate of `size` x `size` pixels, in CPU time of the process too, because the wall clock of a busy machine says little.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mm3dad import files
from mm3dad.run.fit import fit_detector
from mm3dad.view import view_path
from mm3dad.view.live import open_session
from mm3dad.view.why import draw_why
from tests.view.chromium import Chromium
from tests.view.parts import make_sample, write_sample

CATEGORY, SAMPLE = "cookie", "test/bump/001"
FIRST_PAGE = """
import sys, time
from mm3dad.view import view_path
start = time.perf_counter()
view_path(sys.argv[1], sys.argv[2])
print(time.perf_counter() - start, time.process_time())
"""


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

    with socket.socket() as probe:  # any free port
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    view = BrowserView(open_session(root / CATEGORY / "test", sample_id=SAMPLE, model=model), port=port)
    try:
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


def clock(act: Callable[[], object], repeats: int = 5) -> dict[str, float]:
    """Return the median wall and CPU milliseconds of an action."""
    wall, cpu = [], []
    for _ in range(repeats):
        start, spent = time.perf_counter(), time.process_time()
        act()
        wall.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - spent))
    return {"wall_ms": round(float(np.median(wall)), 1), "cpu_ms": round(float(np.median(cpu)), 1)}


def measure(size: int) -> dict[str, dict[str, float]]:
    """Measure first page, layer switch and explanation of a click."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        for number, defect in enumerate(("dent", "good", "good")):
            write_sample(root, make_sample(size, defect, f"{'train' if number else 'test'}/{defect}/{number:03d}", number))
        fit_detector("duet", "folder", root, Path(folder) / "model", categories=["plate"])
        session = open_session(root / "plate" / "test", model=Path(folder) / "model")
        words = [sys.executable, "-c", FIRST_PAGE, str(session.entry.source), str(Path(folder) / "a.html")]
        runs = [subprocess.run(words, check=True, capture_output=True, text=True).stdout.split() for _ in range(3)]
        wall, cpu = np.median(np.array(runs, float), axis=0) * 1000
        (side,) = session.open()
        found = {"first page": {"wall_ms": round(float(wall), 1), "cpu_ms": round(float(cpu), 1)}}
        for layer in session.layer_names:
            session.layer = layer
            session.colors(side)
            found[f"layer {layer}"] = clock(lambda: session.colors(side))
        places = side.entry.explain_peaks()
        points = [int(np.abs(side.pixel - (why.row * size + why.column)).argmin()) for why in places]

        def explain(point: int) -> None:
            ray = side.points[point] + np.array([0, 0, 3.0])
            session.pick(tuple(ray), (0.0, 0.0, -1.0))
            draw_why(session.choose(0, point).why)
            session.colors(side)

        found["click"] = clock(lambda: [explain(point) for point in points], 3)
        return {**found, "click": {name: round(value / len(points), 1) for name, value in found["click"].items()}}


def main() -> None:
    """Draw and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="synthetic data; `mm3dad prepare synthetic` makes them")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    parser.add_argument("--model", type=Path, help="duet fitted on the cookie; fitted now when left out")
    parser.add_argument("--size", type=int, default=800, help="height and width of the sample that is measured; 0 measures nothing")
    arguments = parser.parse_args()
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
    if arguments.size:
        print(json.dumps(measure(arguments.size), indent=1))


if __name__ == "__main__":
    main()
