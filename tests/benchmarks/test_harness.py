"""The benchmark: what it measures, what it says where it cannot, and the page it writes."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch

from benchmarks import __main__ as main
from benchmarks import harness
from benchmarks.harness import Growth, Peer, Row, fit_exponent, list_rows, measure
from benchmarks.page import write_page


def make_row(theirs=1.0, reach=2.0, **more):
    def wait():
        time.sleep(0.06)
        return theirs

    peer = Peer("sleeper", wait, "written here", lambda ours, other: abs(ours - other), tolerance=0.5, reach=reach)
    return Row("a wait", "none", ours=lambda: (time.sleep(0.02), 1.0)[1], peers=[peer], **more)


def test_ratio_check_and_spread():
    found = measure(make_row(), repeats=3)
    peer = found["peers"]["sleeper"]
    assert 1.5 < peer["ratio"] < 6 and peer["runs"] == found["ours"]["runs"] == 3
    assert peer["difference"] == 0 and peer["same"] is True and peer["met"] is (peer["ratio"] >= 2)
    low, high = peer["quartiles_s"]
    assert 0.06 <= low <= peer["median_s"] <= high


def test_a_figure_is_not_reached_by_a_wrong_result():
    peer = measure(make_row(theirs=2.0, reach=0.01), repeats=2)["peers"]["sleeper"]
    assert peer["same"] is False and peer["met"] is False and peer["difference"] == 1


def test_a_slow_side_runs_less_often(monkeypatch):
    monkeypatch.setattr("benchmarks.harness.PATIENCE", 0.1)
    assert measure(make_row(), repeats=5)["peers"]["sleeper"]["runs"] == 2


def test_exponent_of_growth():
    assert fit_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    growth = Growth("loops", [1, 8], lambda side, size: lambda: time.sleep(0.02 * size))
    found = measure(make_row(growth=growth), repeats=2)["growth"]
    assert found["curves"]["mm3dad"]["exponent"] == pytest.approx(1, abs=0.3)


def test_memory_is_that_of_the_row():
    row = Row("megabytes", "none", ours=lambda: len(bytes(range(256)) * 2**18))
    peak = measure(row, repeats=1)["ours"]["peak_bytes"]
    assert peak is None or 60e6 < peak < 120e6


def test_the_page_says_what_was_and_was_not_measured(tmp_path):
    growth = Growth("loops", [1, 2], lambda side, size: lambda: time.sleep(0.02))
    common = {"threads": 2, "commit": "abc", "date": "2026-01-01"}
    rows = {
        "waits": {**measure(make_row(growth=growth, within=1.0, facts=lambda ours, peers: {"answer": 41.5}), 2), **common},
        "absent": {"unavailable": "no such package; pip install it", **common},
        "broken": {"failed": "RuntimeError: what went wrong", "load": 3.14, **common},
    }
    machine = {"processor": "one", "cores": 2, "memory_bytes": 2**30, "system": "Linux", "gpus": []}
    write_page({"mm3dad": "0", "versions": {"torch": "1"}, "machine": machine, "rows": rows}, tmp_path / "benchmarks.md")
    text = (tmp_path / "benchmarks.md").read_text()
    said = ("No GPU was at hand", "| waits | 2", "answer: 41.5", "at most 1 s | yes", "absent: no such package", "/waits.svg")
    for words in (*said, "broken: RuntimeError: what went wrong"):
        assert words in text, words
    for plot in ("ratios.svg", "waits.svg"):
        assert (tmp_path / "benchmarks" / plot).read_text().startswith("<svg")


def test_every_row_has_a_name_of_its_own():
    rows = list_rows()
    assert rows and all(callable(make) and name.isidentifier() for name, make in rows.items())


def test_a_slow_side_is_not_run_again(monkeypatch):
    monkeypatch.setattr(harness, "PATIENCE", 0.01)
    calls = []
    found = measure(Row("waits", "none", ours=lambda: (calls.append(1), time.sleep(0.02))), repeats=5)
    assert found["ours"]["runs"] == len(calls) == 1
    assert found["ours"]["median_s"] >= 0.02


def test_a_row_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fail(quick):
        raise RuntimeError("what went wrong")

    monkeypatch.setattr(main, "list_rows", lambda: {"broken": fail, "waits": lambda quick: make_row()})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--threads", "1,2", "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit, match="rows that failed: broken \\(1 thread\\), broken"):
            main.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "benchmarks.json").read_text())["rows"]
    assert list(rows) == ["broken", "broken (1 thread)", "waits", "waits (1 thread)"]
    assert rows["broken"]["failed"] == "RuntimeError: what went wrong"
    assert (rows["waits"]["threads"], rows["waits (1 thread)"]["threads"]) == (2, 1)
    assert "## Failed" in (tmp_path / "benchmarks.md").read_text()


def test_threads_are_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--threads", "two", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main.main()
    assert "--threads takes numbers" in capsys.readouterr().err
