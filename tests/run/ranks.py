"""One process of a training that torchrun started: the verb `fit`, and beside it what this process holds and saves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mm3dad.cli import main
from mm3dad.files import write_tensors
from mm3dad.methods import Detector
from mm3dad.registry import METHODS
from mm3dad.run import _fitting
from tests.run.test_training import Learner

if __name__ == "__main__":
    kept, *words = sys.argv[1:]
    own = os.environ["RANK"]
    fit_on, save = _fitting.fit_on, Detector.save

    def fit_and_keep(detector, *arguments):
        found = fit_on(detector, *arguments)
        write_tensors(Path(kept) / f"state-{own}.safetensors", detector.state)
        return found

    def save_and_note(detector, folder):
        (Path(kept) / f"saved-{own}").touch()
        return save(detector, folder)

    _fitting.fit_on, Detector.save = fit_and_keep, save_and_note
    METHODS.register("learner", Learner)
    sys.exit(main(words))
