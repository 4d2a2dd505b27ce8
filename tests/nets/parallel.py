"""One process of a training in several, for test_parallel.py."""

from __future__ import annotations

import torch
from torch import distributed, nn

from mm3dad.files import write_tensors
from mm3dad.nets.training import Task, TrainingRun, TrainingSettings, train


def make_task(size, count=16, rank=0):
    """A net whose batches of `size` rows come in a fixed order; each process starts from other weights."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, generator=generator)
    y = x.sum(1, keepdim=True).sin()
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def batches(epoch, generator):
        return torch.randperm(count, generator=generator).split(size)

    def loss(chosen):
        return (net(x[chosen]) - y[chosen]).square().mean()

    def check():
        return float(loss(torch.arange(4)).detach())

    return Task("toy", {}, {"net": net}, lambda: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), 3, batches, loss, check)


def work(rank, world, meeting, out, size, counts):
    """Train on each number of samples in turn; keep weights and losses."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:
        for count in counts:
            task = make_task(size, count, rank)
            history = train(task, TrainingSettings(clip=1.0, ema=0.5), TrainingRun(out / f"training{count}"))
            losses = torch.tensor([row["loss"] for row in history.rows])
            write_tensors(out / f"{count}-{rank}.safetensors", {**task.modules["net"].state_dict(), "loss": losses})
    finally:
        distributed.destroy_process_group()
