"""The one training loop: seeded batches, mixed precision, clipping, EMA, early stopping, checkpoints, resume to the same result.

A method says what is learned (`Task`), its settings say how (`TrainingSettings`), and run/ says where state and curves go
(`TrainingRun`). All randomness of an epoch follows from (seed, epoch), so a training that was cut off ends as one that was not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm3dad.errors import DataError, ModelError, TrainingError
from mm3dad.nets import _checkpoint, parallel
from mm3dad.nets.task import History, Task, TrainingRun, TrainingSettings, choose_precision, shuffle_batches, split_normals

__all__ = [
    "History",
    "Task",
    "TrainingRun",
    "TrainingSettings",
    "choose_precision",
    "remove_checkpoints",
    "shuffle_batches",
    "split_normals",
    "train",
]
Progress = Callable[[str, int, int], None]
DIVERGED = 10.0  # times the first loss that a mean loss may lie above it; far beyond any noise of batches


def train(
    task: Task, settings: TrainingSettings, run: TrainingRun | None = None, progress: Progress | None = None, stage: str = ""
) -> History:
    """Train in place and leave the modules in eval mode, in the state of the best validation, or of the last step without one.

    With a folder, every epoch ends in a checkpoint, and a later call goes on from there to the same result, bit for bit on a CPU.
    With torch.distributed initialised, the processes share the batches and average their gradients; the first one writes.

    Args:
        task: what is learned.
        settings: how.
        run: where checkpoints and curves go; None keeps none.
        progress: called with (stage and loss, done, total).
        stage: what the progress says; "training" and the task's name by default.

    Raises:
        TrainingError: the loss is not finite or grows without bound; modules and checkpoint hold the last good epoch.
        ModelError: the folder holds another training's checkpoint, or a damaged one.
        DataError: an epoch without a batch.
        StorageError: a checkpoint cannot be written; the older one stays.
    """
    run = run or TrainingRun()
    history = _Loop(task, settings, run, progress or (lambda *_: None), stage or f"training {task.name}").run()
    run.histories[task.name] = history
    return history


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a `TrainingRun`'s folder, once what was learned is saved; what else lies there stays."""
    for path in folder.glob("*/checkpoint.json"):
        _checkpoint.remove_checkpoint(path.parent)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class _Loop:
    def __init__(self, task: Task, settings: TrainingSettings, run: TrainingRun, progress: Progress, stage: str) -> None:
        self.task, self.settings, self.progress, self.stage = task, settings, progress, stage
        self.log, self.outer = run.log, run.identity
        self.folder = None if run.folder is None else run.folder / task.name
        self.device = torch.device(settings.device)
        for module in task.modules.values():
            module.to(self.device)
        self.optimizer = task.optimizer()
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.history = History()
        self.epoch = self.step = 0
        self.first: float | None = None
        parallel.copy_from_first(self._state().values())
        self.average = self._copy() if settings.ema else None
        self.best: dict[str, Tensor] | None = None

    def run(self) -> History:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._start()
            good = self._copy()
            try:
                while self.epoch < self.task.epochs and not self._is_patience_over():
                    self._run_epoch()
                    good = self._copy()
            except TrainingError:
                self._load(good)
                raise
            finally:
                self._set_mode(training=False)
        kept = self.best if self.task.validate else self.average
        if kept is not None:
            self._load(kept)
        if not self.task.validate:
            self.history.best = self.epoch
        return self.history

    def _start(self) -> None:
        """Take up the checkpoint if there is one, else judge the untrained state."""
        kept = None if self.folder is None else _checkpoint.read_checkpoint(self.folder, self._identity())
        if kept is not None:
            self._resume(*kept)
        elif self.task.validate:
            self._set_seed(-1)
            self.history.start = self._validate()
            self.best = self._copy()

    def _run_epoch(self) -> None:
        self._set_mode(training=True)
        generator = self._set_seed(self.epoch)
        batches = self.task.batches(self.epoch, generator)
        steps = len(batches) if isinstance(batches, Sized) else 1
        sums: dict[str, float] = {}
        shown = "" if not self.history.rows else f" (loss {self.history.rows[-1]['loss']:.4g})"
        count = done = 0
        for batch, together in parallel.share_out(batches):
            self.progress(f"{self.stage}{shown}", self.epoch * steps + min(done, steps - 1), self.task.epochs * steps)
            terms = self._step(batch, together)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value * together
            count += together
            done += together
            if "loss" in terms and steps > 1:
                shown = f" (loss {terms['loss']:.4g})"
        if not count:
            raise DataError(f"{self.stage}: an epoch has no batch; give more training samples")
        row = {name: value / count for name, value in sums.items()}
        self._require_sound(row["loss"])
        self.epoch += 1
        parallel.copy_from_first(self._buffers())
        if self.task.validate:
            self._set_seed(-1)
            row["validation"] = self._validate()
            reference = self.history.start if not self.history.best else self.history.rows[self.history.best - 1]["validation"]
            if reference is None or row["validation"] < reference:
                self.history.best = self.epoch
                self.best = {key: value.clone() for key, value in (self.average or self._state()).items()}
        self.history.rows.append(row)
        if self.log is not None:
            self.log(self.task.name, self.epoch, row)
        self._write()

    def _step(self, batch: Any, together: int) -> dict[str, float]:
        """Make one step; return the loss and its terms, means over the processes for the loss."""
        factor = 1.0 if self.task.rate is None else self.task.rate(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        loss = None
        if batch is not None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_mixed()):
                found = self.task.loss(_move(batch, self.device))
            terms = found if isinstance(found, dict) else {}
            loss = found if isinstance(found, Tensor) else torch.stack(list(found.values())).sum()
            if bool(loss.isfinite()):
                loss.backward()
        mean = float(parallel.average_gradients(self.parameters, loss, together))
        if not math.isfinite(mean):
            self._fail(f"the loss became {mean}")
        if self.settings.clip:
            norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip))
            if not math.isfinite(norm):
                self._fail(f"the gradient became {norm}")
        self.optimizer.step()
        self.step += 1
        if self.first is None:
            self.first = mean
        if self.average is not None:
            for key, value in self._state().items():
                average = self.average[key]
                if value.is_floating_point():
                    average.lerp_(value, 1 - self.settings.ema)
                else:
                    average.copy_(value)
        return {**{name: float(value.detach()) for name, value in terms.items()}, "loss": mean}

    def _require_sound(self, loss: float) -> None:
        assert self.first is not None
        if loss > self.first + DIVERGED * max(1.0, abs(self.first)):
            self._fail(f"the mean loss rose from {self.first:.4g} to {loss:.4g}")
        if not all(bool(value.isfinite().all()) for value in self._state().values() if value.is_floating_point()):
            self._fail("weights became infinite")

    def _fail(self, what: str) -> None:
        kept = "nothing was learned yet" if not self.epoch else f"the state after epoch {self.epoch} is kept"
        cure = "lower the learning rate, or clip gradients"
        raise TrainingError(f"{self.stage} diverged in epoch {self.epoch + 1}: {what}; {kept}; {cure}")

    def _validate(self) -> float:
        assert self.task.validate is not None
        raw = None
        if self.average is not None:
            raw = self._copy()
            self._load(self.average)
        self._set_mode(training=False)
        with torch.no_grad():
            value = torch.tensor(float(self.task.validate()), dtype=torch.float64, device=self.device)
        parallel.copy_from_first([value])
        if raw is not None:
            self._load(raw)
        if not bool(value.isfinite()):
            self._fail(f"the validation became {float(value)}")
        return float(value)

    def _is_patience_over(self) -> bool:
        return bool(self.task.validate and self.settings.patience and self.epoch - self.history.best >= self.settings.patience)

    def _is_mixed(self) -> bool:
        if self.settings.mixed is None:
            return self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return self.settings.mixed

    def _set_mode(self, training: bool) -> None:
        for module in self.task.modules.values():
            module.train(training)

    def _set_seed(self, epoch: int) -> torch.Generator:
        """Seed torch for an epoch, with a dropout of its own in each process; return the generator of batches, the same in all."""
        torch.manual_seed(_mix(self.settings.seed, epoch, parallel.rank()))
        return torch.Generator().manual_seed(_mix(self.settings.seed, epoch, 0))

    def _state(self) -> dict[str, Tensor]:
        """The modules' tensors by name, themselves and not copies."""
        return {f"{name}.{key}": value.detach() for name, module in self.task.modules.items() for key, value in module.state_dict().items()}

    def _buffers(self) -> Sequence[Tensor]:
        return [buffer for module in self.task.modules.values() for buffer in module.buffers()]

    def _copy(self) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self._state().items()}

    @torch.no_grad()
    def _load(self, kept: dict[str, Tensor]) -> None:
        for key, value in self._state().items():
            value.copy_(kept[key])

    def _identity(self) -> dict[str, Any]:
        shapes = {key: list(value.shape) for key, value in self._state().items()}
        how = {key: value for key, value in asdict(self.settings).items() if key != "device"}
        return {**self.outer, "task": self.task.name, **self.task.identity, "epochs": self.task.epochs, "training": how, "shapes": shapes}

    def _write(self) -> None:
        if self.folder is None:
            return
        if parallel.rank() == 0:
            tensors, plain = _checkpoint.pack_optimizer(self.optimizer)
            states = {"modules": self._state(), "optimizer": tensors, "average": self.average or {}, "best": self.best or {}}
            values = {"epoch": self.epoch, "step": self.step, "first": self.first, "optimizer": plain, "history": asdict(self.history)}
            _checkpoint.write_checkpoint(self.folder, self._identity(), values, states)
        parallel.wait_for_all()

    def _resume(self, values: dict[str, Any], states: _checkpoint.States) -> None:
        try:
            self._load(states["modules"])
            _checkpoint.unpack_optimizer(self.optimizer, states["optimizer"], values["optimizer"])
            for name in ("average", "best"):
                if states[name]:
                    setattr(self, name, {key: value.to(self.device) for key, value in states[name].items()})
            self.epoch, self.step, self.first = int(values["epoch"]), int(values["step"]), float(values["first"])
            self.history = History(**values["history"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"the checkpoint in {self.folder} is damaged ({error}); delete the folder to train from the start") from error


def _mix(seed: int, epoch: int, rank: int) -> int:
    """Make one seed of three numbers, so that neighbouring ones have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{rank}".encode()).digest()[:7], "big")


def _move(batch: Any, device: torch.device) -> Any:
    """Bring a batch's tensors to a device, through tuples, lists and dicts."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, (tuple, list)):
        return type(batch)(_move(part, device) for part in batch)
    if isinstance(batch, dict):
        return {key: _move(part, device) for key, part in batch.items()}
    return batch
