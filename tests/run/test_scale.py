"""Workers of a real cluster of several nodes on this machine give what one process gives, also when a node or the driver dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, MissingPackageError, ModelError, StorageError
from mm3dad.files import read_tensors, write_tensors
from mm3dad.memory.sharded import BLOCK, Shard, ShardedRows, split_rows
from mm3dad.run import _chunks, scale
from mm3dad.run._lock import held
from mm3dad.run._pool import check_workers, describe_workers, run_parallel
from mm3dad.run.evaluate import evaluate
from mm3dad.run.fit import fit_detector
from mm3dad.run.predict import predict_inputs
from mm3dad.run.prepare import prepare, prepare_synthetic
from mm3dad.run.shards import open_on_cluster
from tests.data.trees import write_tree as write_table
from tests.long.kill import digest
from tests.run import cluster as jobs
from tests.run import toy

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
STORE = 80 << 20  # bytes of shared memory for each node
GRID = {"eval_size": 32, "seeds": (0, 1)}
toy.register()


@pytest.fixture(scope="module")
def nodes():
    """A head without workers and two nodes with one worker each; this process is connected to it."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False})
    found.keep = [found.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return toy.write_tree(tmp_path_factory.mktemp("tree"), train=3)


@pytest.fixture(scope="module")
def alone(tree, tmp_path_factory):
    """An evaluation by one process with one thread, as a worker has: the files and the content."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alone") / "out"
    result = evaluate("toy", "mvtec3d", tree, out=out, **GRID)
    torch.set_num_threads(threads)
    return result, out


def files_of(out):
    """Everything below `out` but where it was computed."""
    for path in [out / "evaluate.json", *out.rglob("fit.json")]:
        if path.is_file():
            content = json.loads(path.read_text())
            content.pop("machine", None)
            path.write_text(json.dumps(content))
    return digest(out)


@pytest.fixture
def toys(monkeypatch):
    """Let workers know the toy, which is slow there."""
    monkeypatch.setattr("mm3dad.run.evaluate.run_unit", jobs.run_toy_unit)


@pytest.fixture
def restore(nodes):
    """Give the cluster its second node back."""
    yield
    while len(nodes.keep) < 2:
        nodes.keep.append(nodes.add_node(num_cpus=1, object_store_memory=STORE))


def test_jobs_run_with_one_thread_and_their_errors_come_back(nodes, tmp_path, monkeypatch):
    found = run_parallel(jobs.square, [(number,) for number in range(7)], "ray:auto")
    assert sorted(found) == [(number * number, 1) for number in range(7)]
    monkeypatch.chdir(tmp_path)  # what is named from the driver's folder is found
    assert list(run_parallel(jobs.where, [()], "ray:auto")) == [str(tmp_path)]
    with pytest.raises(DataError, match=r"^job \d is bad; mend it$"):
        list(run_parallel(jobs.fail, [(number,) for number in range(3)], "ray:auto"))
    assert list(run_parallel(jobs.square, [], "ray:auto")) == []


def test_an_evaluation_is_that_of_one_process(nodes, toys, tree, alone, tmp_path):
    result = evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", workers="ray:auto", **GRID)
    assert result["complete"] and result["machine"]["workers"] == "ray" and result["machine"]["torch_threads"] == 1
    assert len(result["runs"]) == 4 and [run["category"] for run in result["runs"]] == ["bolt", "bolt", "nut", "nut"]
    assert files_of(tmp_path / "out") == files_of(alone[1])


def test_models_are_those_of_one_process(nodes, tree, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    own = fit_detector("btf", "mvtec3d", tree, tmp_path / "one")
    torch.set_num_threads(threads)
    rows = fit_detector("btf", "mvtec3d", tree, tmp_path / "two", workers="ray:auto")
    assert [row["categories"] for row in rows] == [row["categories"] for row in own] == [["bolt"], ["nut"]]
    assert {row["machine"]["workers"] for row in rows} == {"ray"} and not list((tmp_path / "two").rglob(".lock"))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_prepared_tree_is_that_of_one_process(nodes, tmp_path):
    raw = write_table(tmp_path / "raw", ("a", "b"), 1, 1, 1, 1)
    for name, workers in (("one", 1), ("two", "ray:auto")):
        assert prepare("mvtec3d", raw, tmp_path / name, border=4, candidates=50, workers=workers)["done"] == 8
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_chunks_are_scored_as_by_one_process_and_kept(nodes, tree, tmp_path, monkeypatch):
    fit_detector("btf", "mvtec3d", tree, tmp_path / "model", categories=["nut"])
    inputs = [tree / "nut/test", tmp_path / "gone.png", tree / "nut/test/dent/rgb/000.png"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    own = predict_inputs(tmp_path / "model", inputs, tmp_path / "one")
    torch.set_num_threads(threads)
    monkeypatch.setattr(_chunks, "CHUNK", 3)
    seen = []
    found = predict_inputs(tmp_path / "model", inputs, tmp_path / "two", on_row=seen.append, workers="ray:auto")
    assert found.failures == own.failures and len(found.failures) == 1 and len(seen) == 7
    assert [row | {"predict_ms": 0} for row in found.rows] == [row | {"predict_ms": 0} for row in own.rows]
    for row in own.rows:
        one, two = (read_tensors(tmp_path / name / row["file"]) for name in ("one", "two"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["maps", "predict.json", "predictions.json"]


def test_finished_chunks_are_not_scored_again(nodes, tree, tmp_path, monkeypatch):
    fit_detector("btf", "mvtec3d", tree, tmp_path / "model", categories=["nut"])
    monkeypatch.setattr(_chunks, "CHUNK", 2)

    def stop(row):
        raise KeyboardInterrupt

    arguments = (tmp_path / "model", [tree / "nut/test"], tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        predict_inputs(*arguments, on_row=stop, workers="ray:auto")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/.journal").iterdir()}
    maps = {row["file"] for note in (tmp_path / "out/.journal").iterdir() for _, row in json.loads(note.read_text())}
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in maps}
    assert kept and 2 * len(kept) == len(maps)
    assert len(predict_inputs(*arguments, workers="ray:auto").rows) == 6
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in maps} == times
    assert not (tmp_path / "out/.journal").exists()


def test_a_lost_node_costs_time_and_nothing_else(nodes, restore, tmp_path):
    found = []
    work = [(tmp_path, number) for number in range(4)]
    driver = threading.Thread(target=lambda: found.extend(run_parallel(jobs.wait_for, work, "ray:auto")), daemon=True)
    driver.start()
    wait_until(lambda: len({path.name.partition("-")[2] for path in tmp_path.glob("[0-3]-*")}) == 2)
    started = [path.name.split("-") for path in tmp_path.glob("[0-3]-*")]
    lost = nodes.keep.pop()
    (interrupted,) = [number for number, node in started if node == lost.node_id]
    nodes.remove_node(lost, allow_graceful=False)
    (tmp_path / f"go-{nodes.keep[0].node_id}").touch()
    driver.join(60)
    assert sorted(found) == [0, 1, 2, 3]
    assert len(list(tmp_path.glob(f"{interrupted}-*"))) == 2


def test_an_evaluation_survives_a_lost_node(nodes, toys, restore, tree, alone, tmp_path):
    def remove():
        wait_until(lambda: list((tmp_path / "out").glob("runs/*/maps/*.safetensors")))
        nodes.remove_node(nodes.keep.pop(), allow_graceful=False)

    helper = threading.Thread(target=remove, daemon=True)
    helper.start()
    result = evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", workers="ray:auto", **GRID)
    helper.join()
    assert result["complete"] and len(nodes.keep) == 1
    assert files_of(tmp_path / "out") == files_of(alone[1])


def test_what_a_killed_driver_finished_stays(nodes, toys, tree, alone, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.run.cluster", str(tree), str(out), f"ray:{nodes.address}"]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_until(lambda: list(out.glob("runs/*/run.json")) or driver.poll() is not None, seconds=240)
    driver.send_signal(signal.SIGKILL)
    _, said = driver.communicate()
    done = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")}
    assert driver.returncode == -signal.SIGKILL and done, said.decode()
    result = evaluate("toy", "mvtec3d", tree, out=out, workers="ray:auto", **GRID)
    assert result["complete"] and files_of(out) == files_of(alone[1])
    assert all(path.stat().st_mtime_ns == moment for path, moment in done.items())


def test_a_job_that_kills_its_worker_is_named_and_the_others_are_done(nodes, tmp_path):
    found = []
    with pytest.raises(StorageError, match=r"1 jobs lost their workers 3 times, the first: part 3 \(.*what is finished stays"):
        for number in run_parallel(
            jobs.die, [(tmp_path, number) for number in range(5)], "ray:auto", names=[f"part {i}" for i in range(5)]
        ):
            found.append(number)
    assert sorted(found) == [0, 1, 2, 4]
    assert len(list(tmp_path.glob("3-*"))) == scale.RETRIES + 1


def test_a_node_that_is_not_like_this_one_is_refused(nodes, tmp_path, monkeypatch):
    with held(tmp_path):
        assert list(run_parallel(jobs.square, [(2,)], "ray:auto", shared=tmp_path)) == [(4, 1)]
    with pytest.raises(StorageError, match="does not see .*; results must go to a file system that all nodes share"):
        list(run_parallel(jobs.square, [(2,)], "ray:auto", shared=tmp_path))
    monkeypatch.setattr(scale, "__version__", "9.9")
    with pytest.raises(ConfigError, match=r"a node of the cluster has mm3dad [\d.]+, here it is 9\.9; results would differ"):
        list(run_parallel(jobs.square, [(2,)], "ray:auto"))


def test_a_cluster_without_what_a_job_needs_is_not_waited_for_forever(nodes, monkeypatch):
    monkeypatch.setattr(scale, "STARVED", 1.0)
    with pytest.raises(StorageError, match="no node with 1 core and 1 GPUs for 1 s; add one and run again"):
        list(run_parallel(jobs.square, [(2,)], "ray:auto", gpus=1))


def test_a_bank_is_searched_by_all_workers_as_by_one_process(nodes, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3 * BLOCK + 7, 8, generator=generator).half()
    rows[2 * BLOCK : 2 * BLOCK + 20] = rows[:20]
    write_tensors(tmp_path / "bank.safetensors", {"rows": rows})
    queries = torch.cat([torch.randn(20, 8, generator=generator), rows[:9].float()])
    shards = split_rows(tmp_path / "bank.safetensors", "rows", 4)
    own = ShardedRows(shards)
    with open_on_cluster(shards, "ray:auto") as bank:
        assert bank.count == own.count == len(rows)
        for k in (1, 3, 25):
            for got, expected in zip(bank.nearest(queries, k), own.nearest(queries, k), strict=True):
                assert torch.equal(got, expected)
        with pytest.raises(ConfigError, match="k must be between 1 and"):
            bank.nearest(queries, 0)
    with pytest.raises(ModelError, match="holds no whole bank"), open_on_cluster([Shard(str(tmp_path))], "ray:auto"):
        pass
    with pytest.raises(DataError, match="at least one shard"), open_on_cluster([], "ray:auto"):
        pass


def test_a_shard_of_a_lost_node_opens_elsewhere(nodes, restore, tmp_path):
    rows = torch.randn(2 * BLOCK, 8, generator=torch.Generator().manual_seed(1))
    write_tensors(tmp_path / "bank.safetensors", {"rows": rows})
    with open_on_cluster(split_rows(tmp_path / "bank.safetensors", "rows", 2), "ray:auto") as bank:
        before = bank.nearest(rows[::5000], 2)
        nodes.remove_node(nodes.keep.pop(), allow_graceful=False)
        after = bank.nearest(rows[::5000], 2)
    assert all(torch.equal(got, expected) for got, expected in zip(after, before, strict=True))


@pytest.mark.parametrize("workers", ["ray:", "ray:0", "ray://head:10001"])
def test_an_address_that_cannot_be_is_said(workers):
    with pytest.raises(ConfigError, match="expected ray, ray:N"):
        check_workers(workers)


@pytest.mark.parametrize("workers", [0, -1, "two", "raylet:1", True])
def test_workers_are_a_number_or_ray(workers, tree, tmp_path):
    with pytest.raises(ConfigError, match="workers must be a number from 1, ray, ray:N or ray:ADDRESS"):
        evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(monkeypatch, tree, tmp_path):
    monkeypatch.setattr(scale, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'pip install "mm3dad\[scale\]"'):
        fit_detector("btf", "mvtec3d", tree, tmp_path / "out", workers="ray")


def test_what_workers_cannot_share_is_said(tree, tmp_path):
    with pytest.raises(ConfigError, match="makes its data on this machine, got workers='ray'"):
        prepare_synthetic(tmp_path / "data", workers="ray")
    fit_detector("muscv2", "mvtec3d", tree, tmp_path / "set", categories=["nut"], options={"image_size": 32})
    with pytest.raises(ConfigError, match="muscv2 scores a set as a whole, which workers cannot share"):
        predict_inputs(tmp_path / "set", [tree / "nut/test"], tmp_path / "out", workers=2)
    fit_detector("btf", "mvtec3d", tree, tmp_path / "model", categories=["nut"])
    with pytest.raises(ConfigError, match="workers keep what they score, and there is no folder for it; give --out"):
        predict_inputs(tmp_path / "model", [tree / "nut/test"], workers=2)


def test_processes_of_this_machine_share_an_evaluation_too(toys, tree, alone, tmp_path):
    result = evaluate("toy", "mvtec3d", tree, out=tmp_path / "out", workers=2, **GRID)
    assert result["machine"]["workers"] == 2 and result["machine"]["torch_threads"] == 1
    assert files_of(tmp_path / "out") == files_of(alone[1])
    assert describe_workers(1) == {} == describe_workers(None)


def wait_until(is_so, seconds=60):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
