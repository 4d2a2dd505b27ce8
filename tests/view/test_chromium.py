"""The 3D page and the browser view as a person meets them: in a real Chromium, looked at and clicked."""

from __future__ import annotations

import dataclasses
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mm3dad.types import Sample
from mm3dad.view import view_path, write_cloud_page
from mm3dad.view.live import open_session
from tests.view.chromium import PATIENCE, Chromium, differ, free_port
from tests.view.parts import make_map, make_sample


def load(browser, path, hash: str = "") -> None:
    browser.open("about:blank")  # another hash alone would not load the page again
    browser.open(path.resolve().as_uri() + hash)
    browser.wait("document.readyState === 'complete' && document.body.dataset.state")
    browser.run("window.frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    browser.run("frame()")


def test_page_draws_the_cloud_and_layers_switch(tmp_path, browser, sample):
    maps = {"map": make_map(sample), "xyz_map": make_map(sample).flip(0)}
    load(browser, write_cloud_page(tmp_path / "a.html", sample, maps, threshold=2.0))
    assert browser.run("document.body.dataset.state") == "ready" and browser.errors == []
    names = browser.run("mm3dad.layers.map((layer) => layer.name)")
    buttons = browser.run("[...document.querySelectorAll('#layers button')].map((button) => button.textContent)")
    assert buttons == names == ["RGB", "height", "normals", "curvature", "score", "score, 3D", "ground truth"]
    assert browser.run("document.querySelector('#layers [aria-pressed=true]').textContent") == "score"
    pictures = {}
    for number, name in enumerate(names):
        browser.run(f"document.querySelectorAll('#layers button')[{number}].click(); frame()")
        pictures[name] = browser.screenshot()[60:, 320:]
    for number, name in enumerate(names):
        for other in names[number + 1 :]:
            assert differ(pictures[name], pictures[other]) > 0.002, (name, other)
    browser.run(f"document.querySelectorAll('#layers button')[{names.index('score')}].click(); frame()")
    assert differ(browser.screenshot()[60:, 320:], pictures["score"]) < 1e-3  # the same layer is the same picture


def test_page_prints_its_head_and_still_picture(tmp_path, browser, sample):
    load(browser, write_cloud_page(tmp_path / "a.html", sample, make_map(sample)))
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        names = ("#head", "#fallback", "#fallback img", "#fallback p", "#controls", "#scene")
        shown = [browser.run(f"getComputedStyle(document.querySelector('{name}')).display") != "none" for name in names]
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
    assert shown == [True, True, True, False, False, False]  # no word of WebGL, which is there


def test_the_hot_place_is_where_the_defect_is(tmp_path, browser, sample):
    load(browser, write_cloud_page(tmp_path / "a.html", sample, 4 * sample.mask.float() + 0.1))
    row, column = (int(one) for one in np.argwhere(sample.mask.numpy()).mean(0))
    find = f"mm3dad.project([...Array(mm3dad.data.count).keys()].find((i) => String(mm3dad.pixelOf(i)) === '{row},{column}'))"
    x, y, _ = browser.run(find)
    patch = browser.screenshot()[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].mean((0, 1))
    assert patch[0] > 150 and patch[0] - patch[2] > 60  # yellow, the hot end
    browser.click(x, y)
    browser.wait("!document.getElementById('info').hidden")
    text = browser.run("document.getElementById('info').innerText")
    assert f"row {row}, column {column}" in text and "4.1" in text and "defect" in text
    assert browser.run("document.getElementById('why').hidden")


def test_a_click_on_a_defect_shows_its_group_and_the_matched_normal_patch(tmp_path, browser, plates):
    root, model = plates
    (page,) = view_path(root / "test", tmp_path / "why.html", sample_id="test/both/070", model=model)
    load(browser, page)
    assert "groups" in browser.run("mm3dad.layers.map((layer) => layer.name)")
    row, column = browser.run("mm3dad.data.explained[0].pixel")
    find = f"mm3dad.project([...Array(mm3dad.data.count).keys()].find((i) => String(mm3dad.pixelOf(i)) === '{row},{column}'))"
    x, y, _ = browser.run(find)
    before = browser.screenshot()[:, 320:780]
    browser.click(x, y)
    browser.wait("!document.getElementById('why').hidden")
    text = browser.run("document.getElementById('why').innerText")
    assert "3D group" in text and "train/good/00" in text and "distance" in text
    browser.wait("[...document.querySelectorAll('#why img')].every((picture) => picture.complete && picture.naturalWidth > 50)")
    assert browser.run("document.querySelectorAll('#why img').length") == 10  # this place, 2 normal patches of each modality
    browser.run("frame()")
    assert differ(browser.screenshot()[:, 320:780], before) > 0.001  # its group is white now
    browser.run("document.querySelectorAll('#places button')[1].click()")
    assert browser.run("document.getElementById('facts').innerText") not in text and browser.errors == []
    load(browser, page, "#layer=groups&why=1")
    assert browser.run("document.querySelector('#layers [aria-pressed=true]').textContent") == "groups"
    assert browser.run("document.getElementById('why').innerText") == text


def test_large_page_is_quick(tmp_path, browser):
    size = 800
    y, x = torch.meshgrid(torch.linspace(0, 0.1, size), torch.linspace(0, 0.1, size), indexing="ij")
    scores = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    big = Sample(scores.expand(3, -1, -1).contiguous(), torch.stack([x, y, 1 + x * y]), mask=scores > 0.99)
    load(browser, write_cloud_page(tmp_path / "a.html", big, {"map": scores, "rgb_map": scores, "xyz_map": scores}))
    took = browser.run(
        "[0, 2, 3, 4].map((number) => { const start = performance.now(); mm3dad.setLayer(number); return performance.now() - start; })"
    )
    assert min(took) < 150  # milliseconds, on whatever machine this is and however busy
    pick = "[1, 2, 3].map(() => { const start = performance.now(); mm3dad.pick(550, 380); return performance.now() - start; })"
    assert min(browser.run(pick)) < 300


def test_page_fits_a_phone(tmp_path, browser, plates):
    root, model = plates
    (page,) = view_path(root / "test", tmp_path / "why.html", sample_id="test/both/070", model=model)
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    try:
        load(browser, page)
        browser.run("document.querySelector('#places button').click()")
        boxes = browser.run(
            "[...document.querySelectorAll('.card')].filter((card) => !card.hidden).map((card) => card.getBoundingClientRect())"
            ".map((box) => [box.left, box.right, box.top, box.bottom])"
        )
        assert len(boxes) == 3 and all(0 <= left < right <= 390 and 0 <= top < bottom <= 800 for left, right, top, bottom in boxes)
    finally:
        browser.call("Emulation.setDeviceMetricsOverride", width=1100, height=760, deviceScaleFactor=1, mobile=False)


# --- the browser view -----------------------------------------------------------------------------------------------------


@pytest.fixture
def view(plates):
    pytest.importorskip("viser", reason="no viser; pip install 'mm3dad[view]'")
    from mm3dad.view.browser import BrowserView

    root, model = plates
    session = open_session(root / "test", sample_id="test/both/070", model=model, compare=model)
    running = BrowserView(session, port=free_port())
    running.show()
    yield running
    running.stop()


def test_browser_view_shows_layers_and_explains_a_click(browser, view):
    browser.open(view.url)
    browser.wait("document.querySelector('canvas') && document.body.innerText.includes('test/both/070')")
    # the model answers later, then both results of the sample have a score
    browser.wait("document.body.innerText.includes('A: plate / test/both/070, score') && document.body.innerText.includes('B: plate')")
    settled = browser.settle()
    assert settled[200:, :700].std() > 8, "no cloud is drawn"
    view.controls.layer.value = "groups"
    grouped = browser.settle()
    assert differ(settled[200:, :700], grouped[200:, :700]) > 0.02
    side = view.session.sides[0]
    row, column = side.entry.explanation.peaks(1)[0]
    point = int(np.abs(side.pixel - (row * 64 + column)).argmin())
    x, y = screen_place(view, side.points[point] + np.array([view.session.shift(0), 0, 0]))
    browser.click(x, y)
    browser.wait("document.body.innerText.includes('3D group')")
    text = browser.run("document.body.innerText")
    found = view.session.sides[0].picked
    assert found is not None and f"row {side.place(found)[0]}" in text
    assert side.layers.scene.groups.ravel()[side.pixel[found]] in {side.layers.scene.groups[row, column], *side.why.beside}
    browser.wait("[...document.querySelectorAll('img')].some((picture) => picture.naturalHeight > 500)")
    assert differ(browser.settle()[200:, :700], grouped[200:, :700]) > 0.001


def screen_place(view, point: np.ndarray) -> tuple[float, float]:
    """Where the only client sees a point."""
    (client,) = view.server.get_clients().values()
    camera = client.camera
    w, x, y, z = camera.wxyz
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    right, down, ahead = turn.T @ (point - camera.position)
    focal = camera.image_height / (2 * np.tan(camera.fov / 2))
    return camera.image_width / 2 + focal * right / ahead, camera.image_height / 2 + focal * down / ahead


def test_browser_view_filters_and_moves(view):
    first = view.session.entry
    view.go(1)
    assert view.session.entry is not first and view.session.entry.id in view.controls.sample.value
    wait_for(lambda: view.session.entry.score is not None)
    view.controls.kind.value = "missed"
    wait_for(lambda: "no sample fits" in view.controls.title.content)  # nothing is missed: the list stays
    assert view.session.entry.id in view.controls.sample.value
    view.controls.kind.value = "found"
    wait_for(lambda: {entry.kind for entry in view.session.shown} == {"found"})
    view.controls.size.value = 2.0
    wait_for(lambda: view._clouds[0].point_size == pytest.approx(2.7 * view.session.sides[0].spacing))
    view.controls.above.value = True
    wait_for(lambda: view.session.highlight)


@pytest.fixture
def few_first(monkeypatch):
    """Few points before a browser has shown how quickly it draws; to be asked for before `view`."""
    for place in ("browser", "controls"):
        monkeypatch.setattr(f"mm3dad.view.{place}.FIRST", 1000)


def test_a_slow_browser_gets_a_part_of_a_large_cloud_and_all_of_it_on_request(browser, few_first, view, monkeypatch):
    monkeypatch.setattr("mm3dad.view.detail.QUICK", 0.0)
    wait_for(lambda: view.session.sides[0].layers.scene.groups is not None)  # the model's answer is a side of its own
    side = view.session.sides[0]
    whole = len(side.points)
    assert len(view._clouds[0].points) == len(view._clouds[0].colors) == len(side.thin(1000)) < whole
    coarse = view._clouds[0].point_size
    browser.open(view.url)
    wait_for(lambda: "draws slowly" in view.controls.title.content)
    assert view.controls.whole.visible and not view.controls.whole.value and len(view._clouds[0].points) < whole
    view.click(tuple(side.points[0] + np.array([view.session.shift(0), 0, 3.0])), (0.0, 0.0, -1.0))
    assert side.picked is not None and side.picked not in side.thin(1000)  # a click meets points that are not drawn, too
    view.controls.whole.value = True
    wait_for(lambda: len(view._clouds[0].points) == len(view._clouds[0].colors) == whole)
    assert view._clouds[0].point_size < coarse


def test_a_quick_browser_gets_the_whole_cloud_unasked(browser, few_first, view, monkeypatch):
    monkeypatch.setattr("mm3dad.view.detail.QUICK", PATIENCE)
    assert len(view._clouds[0].points) < len(view.session.sides[0].points)
    browser.open(view.url)
    wait_for(lambda: len(view._clouds[0].points) == len(view.session.sides[0].points))
    wait_for(lambda: view.controls.whole.value)


def test_a_page_that_comes_before_the_sample_waits_for_it(browser, view, few_first, monkeypatch):
    monkeypatch.setattr("mm3dad.view.detail.QUICK", 0.0)
    early = type(view)(view.session, port=free_port())
    try:
        browser.open(early.url)
        browser.wait("document.querySelector('canvas') !== null")
        time.sleep(2)
        assert early._whole is None and not early.controls.title.visible  # an empty scene would be drawn quickly by anyone
        early.show()
        wait_for(lambda: early._whole is False and early.controls.title.visible)
        browser.wait("document.body.innerText.includes('test/both/070')")
    finally:
        early.stop()


def test_the_panel_appears_after_the_cloud(browser, view, monkeypatch):
    gate = threading.Event()  # no clock: a busy machine needs seconds for the page
    monkeypatch.setattr("mm3dad.view.browser.time", SimpleNamespace(sleep=lambda _: gate.wait(PATIENCE)))
    assert not view.controls.layer.visible and not view.controls.title.visible
    browser.open(view.url)
    browser.wait("document.querySelector('canvas') !== null")
    browser.settle()
    assert "point size" not in browser.run("document.body.innerText")
    gate.set()
    browser.wait("document.body.innerText.includes('point size') && document.body.innerText.includes('test/both/070')")
    assert not view.controls.whole.visible  # the cloud is small


def test_broken_sample_leaves_the_view_running(view, monkeypatch):
    entry = view.session.shown[1]
    monkeypatch.setattr(entry, "source", entry.source.with_name("gone.png"))
    monkeypatch.setattr(entry, "paths", {})
    view.go_to(1)
    assert "gone.png" in view.controls.title.content
    view.go_to(0)
    assert "gone.png" not in view.controls.title.content


def wait_for(holds) -> None:
    """Wait for what a callback or the model does in another thread."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.05)


def test_blind_page_still_shows_a_picture(tmp_path, browser):
    """Without WebGL the page falls back on a still picture."""
    page = write_cloud_page(tmp_path / "a.html", make_sample())
    text = page.read_text().replace('canvas.getContext("webgl"', 'canvas.getContext("nothing"')
    (tmp_path / "b.html").write_text(text)
    load(browser, tmp_path / "b.html")
    assert browser.run("document.body.dataset.state") == "no-webgl" and browser.errors == []
    assert browser.run("document.querySelector('#fallback img').getBoundingClientRect().width") > 100


def test_unorganised_cloud_is_drawn(tmp_path, browser, sample):
    flat = Sample(xyz=sample.xyz.reshape(3, 1, -1), meta=dataclasses.replace(sample.meta, organised=False))
    load(browser, write_cloud_page(tmp_path / "a.html", flat, make_map(sample).reshape(1, -1)))
    assert browser.errors == [] and browser.screenshot()[60:, 320:].std() > 10


def test_without_chromium_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        Chromium()
