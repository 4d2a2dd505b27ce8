"""What the workers of test_scale.py do, and a driver that is killed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from mm3dad.registry import METHODS
from mm3dad.run import evaluate
from mm3dad.run._unit import run_unit
from tests.run import toy


def square(number):
    import torch

    return number * number, torch.get_num_threads()


def where():
    return os.getcwd()


def fail(number):
    from mm3dad.errors import DataError

    raise DataError(f"job {number} is bad; mend it")


def die(folder, number):
    """Note the start; the third job never survives."""
    (Path(folder) / f"{number}-{os.getpid()}").touch()
    if number == 3:
        os._exit(1)
    return number


def wait_for(folder, number):
    """Note where it starts, and end when this node may."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (Path(folder) / f"{number}-{node}").touch()
    deadline = time.monotonic() + 60
    while not (Path(folder) / f"go-{node}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return number


class SlowToy(toy.Toy):
    """The toy under its own name, slow enough to be interrupted."""

    def predict_batch(self, samples):
        time.sleep(0.15)
        return super().predict_batch(samples)


def run_toy_unit(unit):
    """Do a unit in a worker, which knows no toy by itself."""
    if "toy" not in METHODS.names():
        METHODS.register("toy", SlowToy)
    return run_unit(unit)


if __name__ == "__main__":
    from tests.run import cluster  # by its name, under which a worker finds it

    toy.register()
    evaluate.run_unit = cluster.run_toy_unit
    evaluate.evaluate("toy", "mvtec3d", sys.argv[1], out=sys.argv[2], eval_size=32, seeds=(0, 1), workers=sys.argv[3])
