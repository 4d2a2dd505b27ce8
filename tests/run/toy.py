"""A tiny detector and a tiny tree, so that the loops of `run` are tested without any real method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

from mm3dad.errors import DataError
from mm3dad.methods import Detector, Needs
from mm3dad.registry import METHODS
from mm3dad.types import Prediction

SIZE = 32


@dataclass(frozen=True)
class ToyConfig:
    modalities: tuple[str, ...] | None = field(default=None, metadata={"help": "branches to use: rgb, xyz or both"})
    gain: float = field(default=1.0, metadata={"help": "factor of all scores"})
    seed: int = field(default=0, metadata={"help": "seed"})
    device: str = field(default="cpu", metadata={"help": "device"})


class Toy(Detector):
    """Distance to the mean normal sample, plus a little noise of the seed so that seeds differ."""

    name = "toy"
    Config = ToyConfig
    needs = Needs(inputs=("rgb", "xyz"), settings=("one-class", "few-shot", "multi-class"))
    fits = 0
    predictions = 0

    def fit(self, samples, progress=None, validation=None):
        type(self).fits += 1
        if not len(samples):
            raise DataError("toy needs a sample, got none; add some")
        names = self.config.modalities or samples[0].modalities
        self.state = {name: torch.stack([getattr(sample, name) for sample in samples]).mean(0) for name in names}
        for done in range(len(samples)):
            if progress is not None:
                progress("mean", done + 1, len(samples))
        generator = torch.Generator().manual_seed(self.config.seed)
        self.state["noise"] = 0.3 * torch.rand(samples[0].size, generator=generator)
        self.is_fitted = True
        self.threshold = None
        held_out = validation if validation is not None else samples
        self.threshold = max(self._map(sample)["map"].amax().item() for sample in held_out)
        return self

    def _map(self, sample):
        maps = {}
        for name in ("rgb", "xyz"):
            if name in self.state and getattr(sample, name) is not None:
                maps[f"{name}_map"] = self.config.gain * (getattr(sample, name) - self.state[name]).abs().sum(0)
        if not maps:
            raise DataError(f"sample {sample.meta.id!r} has none of the model's modalities; give the missing one")
        return {"map": sum(maps.values()) + self.state["noise"], **maps}

    def predict_batch(self, samples):
        self._require_fit()
        result = []
        for sample in samples:
            type(self).predictions += 1
            maps = self._map(sample)
            score = maps["map"].amax().item()
            parts = {name: value for name, value in maps.items() if name != "map"}
            result.append(Prediction(score, maps["map"], parts, self.threshold, score > self.threshold, True, sample.meta))
        return result

    def _state(self):
        return dict(self.state), {"threshold": self.threshold}

    def _restore(self, tensors, values):
        self.state, self.threshold = tensors, values["threshold"]


class ToySet(Toy):
    """A transductive toy: scores lose the mean of the set."""

    name = "toyset"
    needs = Needs(inputs=("rgb", "xyz"), settings=("one-class", "transductive"))

    def predict_all(self, samples):
        found = [self.predict(sample) for sample in samples]
        lowest = min(one.score for one in found)
        for one in found:
            one.score -= lowest
        return found


def register() -> None:
    """Make the toys known; a second call does nothing."""
    for kind in (Toy, ToySet):
        if kind.name not in METHODS.names():
            METHODS.register(kind.name, kind)


def write_part(folder: Path, stem: str, random: np.random.Generator, defect: bool, roles: Sequence[str] = ("rgb", "xyz")) -> None:
    """Write one sample; a defect is a bright and raised square, exact to the pixel."""
    y, x = np.mgrid[:SIZE, :SIZE]
    rgb = np.full((SIZE, SIZE, 3), 90.0) + random.normal(0, 4, (SIZE, SIZE, 3))
    xyz = np.stack([x * 1e-3, y * 1e-3, np.full((SIZE, SIZE), 0.3)], -1) + random.normal(0, 1e-4, (SIZE, SIZE, 3))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    if defect:
        top, left = random.integers(2, SIZE - 12, 2)
        mask[top : top + 8, left : left + 8] = 255
        rgb[mask > 0] += 80
        xyz[mask > 0, 2] -= 0.02
        (folder / "gt").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / "gt" / f"{stem}.png")
    for role in roles:
        (folder / role).mkdir(parents=True, exist_ok=True)
    if "rgb" in roles:
        Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(folder / "rgb" / f"{stem}.png")
    if "xyz" in roles:
        tifffile.imwrite(folder / "xyz" / f"{stem}.tiff", xyz.astype(np.float32), photometric="rgb")


def write_tree(root: Path, categories: Sequence[str] = ("nut", "bolt"), roles: Sequence[str] = ("rgb", "xyz"), train: int = 6) -> Path:
    """Write a tree in MVTec 3D-AD's layout: 6 train, 2 validation, 3 good and 3 defective test samples."""
    for number, category in enumerate(categories):
        random = np.random.default_rng(number)
        counts = {"train/good": train, "validation/good": 2, "test/good": 3, "test/dent": 3}
        for place, count in counts.items():
            for i in range(count):
                write_part(root / category / place, f"{i:03d}", random, place == "test/dent", roles)
    return root
