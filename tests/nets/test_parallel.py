"""Training in two processes, over gloo."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from mm3dad.files import read_tensors
from mm3dad.nets.training import TrainingSettings, train
from tests.nets.parallel import make_task, work

COUNTS = (16, 12)  # batches of 4 for two processes: in the second case one has none in the last step


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("parallel")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, 2, out / "meeting", out, 4, COUNTS)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
        assert worker.exitcode == 0
    return out


@pytest.mark.parametrize("count", COUNTS)
def test_two_processes_learn_as_one_on_the_joined_batch(folder, count):
    first, second = (read_tensors(folder / f"{count}-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    joined = make_task(8, count)
    history = train(joined, TrainingSettings(clip=1.0, ema=0.5))
    for key, value in joined.modules["net"].state_dict().items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-6)
    if count == 16:  # else the two count the smaller step differently
        assert [row["loss"] for row in history.rows] == pytest.approx(first["loss"].tolist(), rel=1e-5)
    assert (folder / f"training{count}" / "toy" / "checkpoint.json").is_file()
