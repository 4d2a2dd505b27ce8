"""All long suites within a budget, and the page of what they found: `python -m tests.long --budget 120`, in minutes.

Suites may also be run apart (`--suites fuzz`, `--suites kill,soak`): the page holds the last run of each that `--out` keeps.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import mm3dad
from mm3dad.errors import DataError
from mm3dad.files import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"fuzz": 0.5, "kill": 0.3, "soak": 0.2}
PIECES = {"fuzz": "--readers", "kill": "--verbs"}  # what may be run apart
ROW_NAMES = {"fuzz": "reader", "kill": "verb"}  # of such a piece in what a suite writes


def run_suite(suite: str, minutes: float, out: Path, some: str | None = None) -> dict[str, Any]:
    """Run one suite in a process of its own; return and keep its command, when, what it wrote (None if nothing) and its exit status.

    With `some` the suite runs these readers or verbs alone, and what earlier runs found of the others stays, with their commands.
    """
    path, kept = out / f"{suite}.json", out / f"{suite}.run.json"
    words = ["-m", f"tests.long.{suite}", "--minutes", f"{minutes:g}"]
    earlier: list[dict[str, Any]] = []
    if some is None:
        path.unlink(missing_ok=True)
    else:
        words += [PIECES[suite], some]
        if kept.is_file():
            before = read_json(kept)
            past = [*before.get("earlier", []), {key: before[key] for key in ("command", "date", "status")}]
            earlier = _drop_replaced(past, PIECES[suite], some.split(","), {row[ROW_NAMES[suite]] for row in before["rows"] or []})
    found: dict[str, Any] = {"command": f"python {shlex.join(words)}", "date": str(datetime.date.today()), "rows": None, "earlier": earlier}
    found["status"] = subprocess.run([sys.executable, *words, "--out", str(path)], cwd=ROOT, check=False).returncode
    with contextlib.suppress(DataError):
        found["rows"] = read_json(path)
    write_json(kept, found)
    return found


def _drop_replaced(past: list[dict[str, Any]], flag: str, pieces: list[str], every: set[str]) -> list[dict[str, Any]]:
    """Return the earlier calls of which later ones have not done all again; one without the flag did every reader or verb."""
    standing, later = [], set(pieces)
    for one in reversed(past):
        words = shlex.split(one["command"])
        did = set(words[words.index(flag) + 1].split(",")) if flag in words else every
        if not did <= later:
            standing.append(one)
        later |= did
    return standing[::-1]


def read_runs(out: Path) -> dict[str, dict[str, Any]]:
    """Return the last run of each suite that was kept, in the order of the page."""
    return {suite: read_json(out / f"{suite}.run.json") for suite in SHARES if (out / f"{suite}.run.json").is_file()}


def _faults(rows: list[dict[str, Any]]) -> list[str]:
    return [f"- {row.get('reader') or row.get('verb')}: {fault}" for row in rows for fault in row["faults"]]


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return docs/reliability.md."""
    lines = [
        "# Reliability",
        f"Made by `make test-long` (`BUDGET=120` minutes by default; `python -m tests.long --suites fuzz` runs some): mm3dad "
        f"{mm3dad.__version__}, Python {platform.python_version()}, {platform.machine()}. "
        "A suite whose time ran out did fewer inputs or kills than it was asked for; the tables give what it did.",
    ]
    for suite, run in found.items():
        rows = run["rows"]
        lines += ["", f"## {suite.capitalize()}"]
        lines += [f"`{one['command']}` on {one['date']} ended with {one['status']}." for one in (*run.get("earlier", []), run)]
        if rows is None:
            lines.append("It wrote nothing.")
        elif suite == "fuzz":
            lines += ["", "| reader | inputs | crashes, hangs, memory | seconds |", "|---|---|---|---|"]
            lines += [f"| {row['reader']} | {row['inputs']} | {len(row['faults'])} | {row['seconds']} |" for row in rows] + _faults(rows)
        elif suite == "kill":
            lines += ["", "| verb | kills | of them before its end | results that differ | seconds |", "|---|---|---|---|---|"]
            lines += [f"| {row['verb']} | {row['kills']} | {row.get('hit', 0)} | {len(row['faults'])} | {row['seconds']} |" for row in rows]
            lines += _faults(rows)
        else:
            if rows["series"]:
                first, last = rows["series"][0], rows["series"][-1]
                lines.append(
                    f"`predict --watch` scored {rows['samples']} parts with `{rows['method']}` in {rows['seconds']} s; resident memory "
                    f"{first['bytes'] >> 20} -> {last['bytes'] >> 20} MiB, handles {first['handles']} -> {last['handles']}."
                )
            lines += [f"- {fault}" for fault in rows["faults"]]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the suites and write the page; the status is 1 if one of them found a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=120.0, help="minutes of all suites together")
    parser.add_argument("--suites", default=",".join(SHARES), help="some of them, with commas between")
    parser.add_argument("--only", help="of one suite some readers or verbs, with commas between: what is kept of the others stays")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "long", help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    given = parser.parse_args()
    names = given.suites.split(",")
    if given.only and given.suites not in PIECES:
        parser.error(f"--only takes one suite, {' or '.join(PIECES)}, got {given.suites}")
    total = sum(SHARES[name] for name in names)
    failed = [run_suite(name, given.budget * SHARES[name] / total, given.out, given.only)["status"] for name in names]
    write_text(given.page, page(read_runs(given.out)))
    print(f"wrote {given.page}")
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
