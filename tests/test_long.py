"""The page of the long suites: suites run apart stand on it together, each with its own command and date."""

from __future__ import annotations

import subprocess

from mm3dad.files import write_json
from tests.long import __main__ as long


def test_suites_run_apart_are_merged(tmp_path, monkeypatch):
    wrote = {
        "fuzz": [
            {"reader": "tiff", "inputs": 12, "faults": ["hang"], "seconds": 1.0},
            {"reader": "ply", "inputs": 3, "faults": [], "seconds": 1.0},
        ],
        "soak": {
            "method": "duet", "samples": 6, "seconds": 2.0, "faults": [],
            "series": [{"bytes": 1 << 20, "handles": 3}, {"bytes": 2 << 20, "handles": 3}],
        },
    }  # fmt: skip

    def run(words, cwd, check):
        suite = words[2].rpartition(".")[2]
        if suite in wrote:
            write_json(words[words.index("--out") + 1], wrote[suite])
        return subprocess.CompletedProcess(words, int(suite != "soak"))

    monkeypatch.setattr(long.subprocess, "run", run)
    for suite, minutes in (("soak", 2), ("fuzz", 1), ("kill", 1)):
        long.run_suite(suite, minutes, tmp_path)
    page = long.page(long.read_runs(tmp_path))
    assert page.index("## Fuzz") < page.index("## Kill") < page.index("## Soak")
    assert "| tiff | 12 | 1 | 1.0 |" in page and "- tiff: hang" in page
    assert "`python -m tests.long.kill --minutes 1` on " in page and "ended with 1.\nIt wrote nothing." in page
    assert "resident memory 1 -> 2 MiB, handles 3 -> 3" in page
    wrote["fuzz"][0] |= {"inputs": 99, "faults": []}
    long.run_suite("fuzz", 3, tmp_path, "tiff")
    more = long.page(long.read_runs(tmp_path))
    assert "`python -m tests.long.fuzz --minutes 1` on " in more and "`python -m tests.long.fuzz --minutes 3 --readers tiff` on " in more
    long.run_suite("fuzz", 4, tmp_path, "tiff,ply")
    more = long.page(long.read_runs(tmp_path))
    assert "fuzz --minutes 1`" not in more and "--minutes 3 --readers tiff`" not in more and "--minutes 4 --readers tiff,ply`" in more
    long.run_suite("fuzz", 5, tmp_path)
    long.run_suite("fuzz", 6, tmp_path, "ply")
    assert "--minutes 5`" in long.page(long.read_runs(tmp_path))
    long.run_suite("fuzz", 7, tmp_path, "tiff")
    more = long.page(long.read_runs(tmp_path))
    assert "--minutes 5`" not in more and "--minutes 6 --readers ply`" in more and "--minutes 7 --readers tiff`" in more
    long.run_suite("fuzz", 1, tmp_path)
    again = long.page(long.read_runs(tmp_path))
    assert "| tiff | 99 | 0 | 1.0 |" in again and "hang" not in again.split("## Fuzz")[1].split("|")[0] and "## Soak" in again
