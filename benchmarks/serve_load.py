"""Send many requests to `mm3dad serve` from several clients at once: is an answer lost or mixed up, does memory grow?

    python -m benchmarks.serve_load [--clients 4] [--requests 500]

The service runs in a process of its own with a small model (`duet` on clouds, tests/frozen). Each request names its part and holds one of
twelve clouds, whose scores are known from predicting in Python; an answer must bring the name and, to the last bit, its own part's score.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tifffile

import mm3dad
from mm3dad.run.serve import score_upload
from tests.methods.parts import make_sample

MODEL = Path(__file__).resolve().parent.parent / "tests" / "frozen" / "format1" / "model"
TOKEN = "load"


def encode(seed: int) -> bytes:
    """Return a plate's cloud as a TIFF."""
    sample = make_sample(seed, "dent" if seed % 2 else None)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, sample.xyz.permute(1, 2, 0).numpy().astype(np.float32), photometric="rgb")
    return buffer.getvalue()


def resident(process: int) -> float:
    """Return the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def run(clients: int, requests: int) -> dict[str, Any]:
    """Return what came back."""
    bodies = [encode(100 + number) for number in range(12)]
    detector = mm3dad.load(str(MODEL))
    expected = [score_upload(detector, {"xyz": body}, "part", False)["score"] for body in bodies]
    words = [sys.executable, "-c", "from mm3dad.cli import main; main()", "serve", str(MODEL), "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "MM3DAD_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"})
    try:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())[0].rstrip("/")  # type: ignore[index]
        memory: list[float] = []

        def client(number: int) -> list[tuple[bool, float]]:
            answers = []
            with httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=120) as session:
                for turn in range(requests):
                    name, kind = f"{number}-{turn}", (number * 5 + turn) % len(bodies)
                    start = time.perf_counter()
                    answer = session.post(f"{address}/predict", params={"name": name}, files={"xyz": ("a.tiff", bodies[kind])})
                    row = answer.json() if answer.status_code == 200 else {}
                    answers.append((row.get("id") == name and row.get("score") == expected[kind], time.perf_counter() - start))
                    if number == 0 and turn % 50 == 49:
                        memory.append(round(resident(server.pid), 1))
            return answers

        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            answers = [answer for found in pool.map(client, range(clients)) for answer in found]
        seconds = time.perf_counter() - start
    finally:
        server.terminate()
        server.wait(20)
    times = np.array([spent for _, spent in answers]) * 1000
    return {
        "clients": clients,
        "requests": len(answers),
        "right": sum(right for right, _ in answers),
        "seconds": round(seconds, 1),
        "answer_ms_p50": round(float(np.percentile(times, 50)), 1),
        "answer_ms_p99": round(float(np.percentile(times, 99)), 1),
        "memory_mb": memory,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=500, help="of each client")
    arguments = parser.parse_args()
    result = run(arguments.clients, arguments.requests)
    print(json.dumps(result))
    sys.exit(result["right"] != result["requests"])


if __name__ == "__main__":
    main()
