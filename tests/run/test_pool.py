import os
import signal
import subprocess
import sys
import time

import pytest

from mm3dad.errors import StorageError
from mm3dad.run._pool import run_parallel

PARENT = """
import os, time
from mm3dad.run._pool import run_parallel
from tests.run.test_pool import wait_long
if __name__ == "__main__":
    list(run_parallel(wait_long, [(os.environ["FOLDER"], i) for i in range(3)], 2))
"""


def wait_long(folder, index):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(60)


def test_one_worker_runs_here_and_in_order():
    assert list(run_parallel(divmod, [(7, 2), (9, 4)], 1)) == [(3, 1), (2, 1)]
    assert list(run_parallel(divmod, [], None)) == []


def test_a_worker_that_is_stopped_is_one_line():
    with pytest.raises(StorageError, match="run again with fewer workers, what is finished stays"):
        list(run_parallel(os._exit, [(9,), (9,)], 2))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    folder = tmp_path / "workers"
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "FOLDER": str(folder), "PYTHONPATH": os.getcwd()}, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(os.listdir(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = os.listdir(folder)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
