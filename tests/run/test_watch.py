from __future__ import annotations

import json
import shutil
import threading
import time

import numpy as np
import pytest

import mm3dad
from mm3dad import files
from mm3dad.cli import main, verbs
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.run import watch
from mm3dad.run.watch import stream, watch_folder
from tests.run import toy

toy.register()


class Camera:
    """Runs `watch_folder` in a thread; collects the rows."""

    def __init__(self, model, folder, **options):
        self.rows, self._stop = [], threading.Event()
        self.folder = folder
        folder.mkdir(exist_ok=True)
        options = {"settle": 0.05, "patience": 0.5, **options}
        self._thread = threading.Thread(
            target=watch_folder,
            args=(model, folder),
            kwargs={"on_line": lambda row, sample, prediction: self.rows.append(row), "stop": self._stop.is_set, **options},
        )

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def wait(self, count, seconds=20):
        end = time.monotonic() + seconds
        while len(self.rows) < count and time.monotonic() < end:
            time.sleep(0.02)
        assert len(self.rows) == count, self.rows

    def drop(self, tree, number, defect="dent", roles=("rgb", "xyz")):
        for role, suffix in (("rgb", "png"), ("xyz", "tiff")):
            if role in roles:
                shutil.copy(tree / f"nut/test/{defect}/{role}/{number:03d}.{suffix}", self.folder / f"{defect}{number}.{suffix}")


def test_parts_are_scored_as_predict_scores_them(tree, model, tmp_path):
    with Camera(model, tmp_path / "in", out=tmp_path / "out") as camera:
        camera.drop(tree, 0)
        camera.wait(1)
        camera.drop(tree, 1, "good")
        camera.wait(2)
    detector = mm3dad.load(model)
    dataset = {sample.meta.id: sample for sample in mm3dad.open_dataset("mvtec3d", tree, "nut", "test")}
    assert [row["part"] for row in camera.rows] == ["dent0", "good1"]
    expected = [detector.predict(dataset[name]) for name in ("test/dent/000", "test/good/001")]
    assert [(row["score"], row["is_anomaly"]) for row in camera.rows] == [(one.score, one.is_anomaly) for one in expected]
    assert files.read_lines(tmp_path / "out/watch.jsonl") == json.loads(json.dumps(camera.rows))
    assert all(row["error"] is None and row["predict_ms"] > 0 and row["heatmap"] for row in camera.rows)


def test_a_file_that_is_still_being_written_is_waited_for(tree, model, tmp_path):
    data = (tree / "nut/test/dent/rgb/000.png").read_bytes()
    with Camera(model, tmp_path / "in", patience=5.0) as camera:
        shutil.copy(tree / "nut/test/dent/xyz/000.tiff", camera.folder / "a.tiff")
        with (camera.folder / "a.png").open("wb") as file:
            for piece in np.array_split(np.frombuffer(data, np.uint8), 4):
                time.sleep(0.2)  # longer than settle: only decoding tells that it is not whole
                assert camera.rows == []
                file.write(piece.tobytes())
                file.flush()
        camera.wait(1)
    assert camera.rows[0]["error"] is None and camera.rows[0]["is_anomaly"]


def test_a_truncated_file_is_told_and_the_service_goes_on(tree, model, tmp_path):
    with Camera(model, tmp_path / "in") as camera:
        camera.drop(tree, 0, roles=("xyz",))
        (camera.folder / "dent0.png").write_bytes((tree / "nut/test/dent/rgb/000.png").read_bytes()[:700])
        camera.wait(1)
        assert "dent0.png" in camera.rows[0]["error"] and "\n" not in camera.rows[0]["error"] and "score" not in camera.rows[0]
        camera.drop(tree, 1)
        camera.wait(2)
        assert camera.rows[1]["error"] is None
        camera.drop(tree, 0)  # written again, whole
        camera.wait(3)
    assert camera.rows[2]["part"] == "dent0" and camera.rows[2]["error"] is None


def test_a_part_without_a_modality_is_told(tree, model, tmp_path):
    with Camera(model, tmp_path / "in") as camera:
        camera.drop(tree, 0, roles=("rgb",))
        camera.wait(1)
    assert "came without xyz" in camera.rows[0]["error"]


def test_a_link_out_of_the_folder_is_refused(tree, model, tmp_path):
    with Camera(model, tmp_path / "in") as camera:
        (camera.folder / "a.png").symlink_to(tree / "nut/test/dent/rgb/000.png")
        camera.wait(1)
    assert "leads out of the watched folder" in camera.rows[0]["error"]


def test_a_restart_does_not_redo_finished_parts(tree, model, tmp_path):
    with Camera(model, tmp_path / "in", json=tmp_path / "lines.jsonl") as camera:
        camera.drop(tree, 0)
        camera.drop(tree, 1)
        camera.wait(2)
    with (tmp_path / "lines.jsonl").open("a") as file:
        file.write('{"part": "torn')  # killed in the middle of a line
    with Camera(model, tmp_path / "in", json=tmp_path / "lines.jsonl") as camera:
        camera.drop(tree, 2)
        camera.wait(1)
        time.sleep(0.3)
    assert [row["part"] for row in camera.rows] == ["dent2"]
    assert [row["part"] for row in files.read_lines(tmp_path / "lines.jsonl")] == ["dent0", "dent1", "dent2"]


def test_folders_below_and_a_part_that_cannot_be_scored(tree, model, tmp_path):
    with Camera(model, tmp_path / "in") as camera:
        (camera.folder / "shift1").mkdir()
        for suffix, role in (("png", "rgb"), ("tiff", "xyz")):
            shutil.copy(tree / f"nut/test/dent/{role}/000.{suffix}", camera.folder / "shift1" / f"p.{suffix}")
        camera.wait(1)
    assert camera.rows[0]["part"] == "shift1/p"


def test_watching_costs_less_than_10_ms_a_part(tree, model, tmp_path):
    """Beyond waiting for the file: finding, checking and writing the line, with 40 parts in the folder."""
    (folder := tmp_path / "in").mkdir()
    for number in range(40):
        for role, suffix in (("rgb", "png"), ("xyz", "tiff")):
            shutil.copy(tree / f"nut/test/dent/{role}/000.{suffix}", folder / f"{number:02d}.{suffix}")
    detector = mm3dad.load(model)
    watcher = watch.Watcher(folder, ("rgb", "xyz"), settle=0.0)
    spent = []
    begin = time.thread_time()
    for name, stamp, sample in watcher.poll():
        outcome = watch.score_one(detector, sample)
        row = {"part": name, "stamp": stamp, "error": None, **watch.describe_row(sample, outcome.prediction, outcome.milliseconds)}
        files.append_line(tmp_path / "l.jsonl", row)
        spent.append(time.thread_time() - begin)
        begin = time.thread_time()
    plain = []
    for path in sorted(folder.glob("*.png")):
        begin = time.thread_time()
        watch.score_one(detector, watch.read_sample(path))
        plain.append(time.thread_time() - begin)
    assert len(spent) == 40
    assert 1000 * (np.median(spent) - np.median(plain)) < 10


def test_stream_scores_as_they_come_and_survives_a_bad_sample(tree, model):
    samples = list(mm3dad.open_dataset("mvtec3d", tree, "nut", "test", modalities="rgb"))
    bad = mm3dad.open_dataset("mvtec3d", tree, "nut", "test", modalities="xyz")[0]
    detector = mm3dad.create("toy").fit(samples)
    asked = []

    def camera():
        for sample in (samples[0], bad, samples[1]):
            asked.append(sample)
            yield sample

    flow = stream(detector, camera())
    first = next(flow)
    assert len(asked) == 1  # the next one is not asked for before this one is told
    second, third = list(flow)
    assert third.prediction is not None and second.prediction is None and "none of the model's modalities" in str(second.error)
    assert first.prediction.score == detector.predict(samples[0]).score and first.milliseconds > 0
    with pytest.raises(ConfigError, match="cannot score parts as they come"):
        next(stream(mm3dad.create("toyset").fit(samples), iter(samples)))
    with pytest.raises(ModelError, match="not fitted"):
        next(stream(mm3dad.create("toy"), iter(samples)))


def test_bad_arguments(tree, model, tmp_path, capsys):
    with pytest.raises(DataError, match="expected a folder to watch at"):
        watch_folder(model, tmp_path / "missing")
    assert main(["predict", str(model)]) == 2
    assert "either inputs or --watch" in capsys.readouterr().err
    assert main(["predict", str(model), "x.png", "--watch", str(tmp_path)]) == 2


def test_the_verb_writes_lines_and_heat_maps_until_interrupted(tree, model, tmp_path, capsys, monkeypatch):
    for role, suffix in (("rgb", "png"), ("xyz", "tiff")):
        shutil.copy(tree / f"nut/test/dent/{role}/000.{suffix}", tmp_path / f"a.{suffix}")
    begin = time.monotonic()

    def sleep(seconds):
        if (tmp_path / "out/watch.jsonl").is_file() or time.monotonic() - begin > 20:
            raise KeyboardInterrupt

    there, draw = [], verbs._write_heatmap

    def draw_later(path, *rest):
        there.append((capsys.readouterr(), (tmp_path / "out/watch.jsonl").exists()))
        draw(path, *rest)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    monkeypatch.setattr(verbs, "_write_heatmap", draw_later)
    assert main(["predict", str(model), "--watch", str(tmp_path), "--out", str(tmp_path / "out")]) == 130
    captured = capsys.readouterr()
    ((told, is_kept),) = there  # the line does not wait for its picture; it is kept when both are there
    (row,) = [json.loads(line) for line in told.out.splitlines()]
    assert not is_kept and captured.out == "" and f"watching {tmp_path}; Ctrl-C ends it" in told.err
    assert row["is_anomaly"] and (tmp_path / "out" / row["heatmap"]).is_file() and "interrupted" in captured.err
