"""Fuzz every reader for long: `python -m tests.long.fuzz --count 100000 --minutes 60 --out fuzz.json`.

Each reader runs in a process of its own under a memory limit; the parent waits at most five seconds for each input. An input that
kills or stops the process is noted by its number (the mutation can be made again from it) and the next one goes on in a new process.
"""

from __future__ import annotations

import argparse
import json
import resource
import select
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from mm3dad.errors import Mm3dadError
from mm3dad.files import read_json, write_json
from tests.fuzz.corpus import make_readers, mutate

SECONDS = 5.0  # of one input
MEMORY = 1 << 30  # bytes that reading one small file may take beside the libraries
IN_MEMORY = Path("/dev/shm")  # a disk flushes a file that is written over, which takes ten times as long as most reads


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(name: str, first: int, count: int) -> None:
    """Read mutations `first` to `first + count` and print a line of each: number, and what it did wrong if it did."""
    warnings.simplefilter("ignore")
    reader = make_readers()[name]
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        path = Path(folder) / f"input{reader.suffix}"
        path.write_bytes(reader.seeds[0])
        reader.read(path)  # loads the libraries, whose memory does not count
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + 2 * MEMORY, virtual + 2 * MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        peak = _peak()
        for number in range(first, first + count):
            path.write_bytes(mutate(reader.seeds, number))
            fault = ""
            try:
                reader.read(path)
            except Mm3dadError:
                pass
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"
            if _peak() - peak > MEMORY:
                fault, peak = f"took {_peak() - peak} bytes", _peak()
            if any(entry.name != "unpacked" and entry.stem != "input" for entry in Path(folder).iterdir()):
                fault = "wrote outside its folder"
            print(json.dumps([number, fault]), flush=True)


def fuzz(name: str, first: int, count: int, until: float) -> dict[str, Any]:
    """Feed one reader; return how many inputs it took and what went wrong."""
    faults: list[dict[str, Any]] = []
    following, last, start = first, first + count, time.monotonic()
    while following < last and time.monotonic() < until:
        command = [sys.executable, "-m", "tests.long.fuzz", "--work", name, "--first", str(following), "--count", str(last - following)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            limit, buffer = 120.0, b""  # the first line waits for the libraries
            while time.monotonic() < until:
                ready, _, _ = select.select([process.stdout], [], [], limit)
                block = process.stdout.read1(1 << 16) if ready else None  # type: ignore[attr-defined]
                if block is None:
                    faults.append({"number": following, "fault": f"no answer in {limit:.0f} s"})
                    following += 1
                    break
                if not block:
                    if process.wait() != 0:
                        said = process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
                        faults.append({"number": following, "fault": f"died with {process.returncode} {' '.join(said)}"})
                        following += 1
                    break
                *lines, buffer = (buffer + block).split(b"\n")
                for line in lines:
                    number, fault = json.loads(line)
                    following = number + 1
                    if fault:
                        faults.append({"number": number, "fault": fault})
                limit = SECONDS
            process.kill()
    return {"reader": name, "inputs": following - first, "faults": faults, "seconds": round(time.monotonic() - start, 1)}


def main() -> int:
    """Fuzz the readers in turn, keep a JSON, and fail if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="inputs of each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--minutes", type=float, default=600.0, help="of all readers together, shared evenly")
    parser.add_argument("--readers", help="some of them, with commas between; the rows of others that --out holds stay")
    parser.add_argument("--out", type=Path, help="JSON of what was found")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.first, given.count)
        return 0
    names = given.readers.split(",") if given.readers else list(make_readers())
    end, order = time.monotonic() + 60 * given.minutes, list(make_readers())
    rows: list[dict[str, Any]] = []
    if given.readers and given.out and given.out.exists():
        rows = [row for row in read_json(given.out) if row["reader"] not in names]
    faulty = False
    for position, name in enumerate(names):
        share = (end - time.monotonic()) / (len(names) - position)
        row = fuzz(name, given.first, given.count, time.monotonic() + share)
        print(f"{name}: {row['inputs']} inputs, {len(row['faults'])} faults, {row['seconds']} s", flush=True)
        for fault in row["faults"][:10]:
            print(f"  {fault['number']}: {fault['fault']}")
        faulty |= bool(row["faults"])
        rows = sorted([*rows, row], key=lambda one: order.index(one["reader"]))
        if given.out:
            write_json(given.out, rows)
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())
