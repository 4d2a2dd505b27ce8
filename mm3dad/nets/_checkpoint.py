"""The state of a training on disk: safetensors and the JSON that seals them, never pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from mm3dad import files
from mm3dad.errors import DataError, ModelError

FORMAT = 1
States = dict[str, dict[str, Tensor]]


def write_checkpoint(folder: Path, identity: dict[str, Any], values: dict[str, Any], states: States) -> None:
    """Replace the checkpoint in a folder; interrupted, or out of space, it leaves the older one.

    Args:
        identity: what the training depends on.
        values: plain values.
        states: name -> tensors by name.
    """
    tensors = {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}
    content = {"format": FORMAT, "identity": identity, "states": list(states), "values": values}
    files.write_sealed(folder / "checkpoint.json", content, tensors, "checkpoint")


def read_checkpoint(folder: Path, identity: dict[str, Any]) -> tuple[dict[str, Any], States] | None:
    """Return (values, states) of the checkpoint in a folder, None where there is none.

    Raises:
        ModelError: it is damaged, or of another training; what differs is named.
    """
    path = folder / "checkpoint.json"
    if not path.is_file():
        return None
    try:
        content = files.read_json(path)
        version, kept, values, seal = content["format"], content["identity"], content["values"], content["tensors"]
        states: States = {name: {} for name in content["states"]}
        if not isinstance(kept, dict) or not isinstance(values, dict):
            raise TypeError("identity and values must be objects")
    except (DataError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged or foreign ({error}); delete the folder to train from the start") from error
    if version != FORMAT:
        raise ModelError(f"{path} has format {version}, this version reads {FORMAT}; delete the folder to train from the start")
    if differing := files.find_differences(kept, json.loads(json.dumps(identity, default=str))):
        name, (old, new) = next(iter(differing.items()))
        more = f" (also: {', '.join(list(differing)[1:])})" if len(differing) > 1 else ""
        raise ModelError(
            f"{folder} holds a training with {name} = {json.dumps(old)}, this one has {json.dumps(new)}{more}; "
            "go on with the same settings and data, or delete the folder to train from the start"
        )
    for key, value in files.read_sealed(path, seal).items():
        name, _, rest = key.partition("/")
        states[name][rest] = value
    return values, states


def remove_checkpoint(folder: Path) -> None:
    """Delete the checkpoint in a folder and the folder if nothing else is in it; nothing happens where there is none."""
    (folder / "checkpoint.json").unlink(missing_ok=True)
    for path in folder.glob("checkpoint*.safetensors"):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's per-parameter state as tensors and plain values by "<parameter>/<name>"."""
    tensors, values = {}, {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            (tensors if isinstance(value, Tensor) else values)[f"{number}/{name}"] = value
    return tensors, values


def unpack_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Give a new optimizer back what `pack_optimizer` took; its groups stay as they were made."""
    state: dict[int, dict[str, Any]] = {}
    both: Iterable[tuple[str, Any]] = [*tensors.items(), *values.items()]
    for key, value in both:
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
