"""Patch features of RGB images from any timm backbone."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mm3dad.errors import ConfigError, WeightsError, nearest_name
from mm3dad.features.weights import HALF, IMAGENET, RANDOM, TABLE, Weights, count_bytes, describe, load_into, locate_file, read_checkpoint
from mm3dad.nets.folding import fold_batch_norms
from mm3dad.nets.graph import Graph


class RGBExtractor:
    """A frozen timm backbone that turns images into feature maps of chosen layers.

    Args:
        backbone: a name of the weight table (`mm3dad list weights`) or any timm architecture, "name" or "name.tag".
        layers: indices as timm's `forward_intermediates` counts them, negative from the end; empty takes the table's.
        weights: "default" (table, package or hub), "random" (said so in every result) or the path of a state dict.
        device: torch device; on CUDA the network runs in half precision.
        seed: of random weights.

    Raises:
        ConfigError: unknown backbone or layers it does not have.
        WeightsError: weights missing, damaged or of another architecture.
    """

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        layers: Sequence[int] = (),
        weights: str = "default",
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        import timm

        row = TABLE.get(backbone)
        architecture = row.architecture if row else backbone
        if architecture.split(".")[0] not in timm.list_models():
            known = [*TABLE, *timm.list_models()]
            hint = nearest_name(backbone, known).split("known:")[0]
            raise ConfigError(f"unknown backbone {backbone!r}; {hint}see `mm3dad list weights` and timm.list_models()")
        self.device = find_device(device)
        net, self.description = _load_network(architecture, row, weights, seed)
        self._net = fold_batch_norms(net.eval().requires_grad_(False)).to(self.device, memory_format=torch.channels_last)
        configured = getattr(self._net, "pretrained_cfg", {}) or {}
        mean, std = (row.mean, row.std) if row else (configured.get("mean", IMAGENET[0]), configured.get("std", IMAGENET[1]))
        self._mean = torch.tensor(mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(std, device=self.device).view(3, 1, 1)
        patch = getattr(getattr(self._net, "patch_embed", None), "patch_size", None)
        self.multiple = int(patch[0]) if patch else 32
        self.layers = self._check_layers(backbone, tuple(layers) or (row.layers if row else (-1,)))

    def _check_layers(self, backbone: str, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not hasattr(self._net, "forward_intermediates"):
            raise ConfigError(f"timm's {backbone} gives no intermediate features; choose another backbone")
        count = len(self._net.feature_info)
        for layer in layers:
            if not -count <= layer < count:
                raise ConfigError(f"layers of {backbone} must lie in {-count}..{count - 1}, got {layer}")
        return tuple(layer % count for layer in layers)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the network's parameters."""
        return count_bytes(self._net)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each layer."""
        return tuple(int(self._net.feature_info[layer]["num_chs"]) for layer in self.layers)

    def input_size(self, size: tuple[int, int], image_size: int) -> tuple[int, int]:
        """Return the network's input (H, W): the image's shape scaled to image_size^2 pixels, in multiples of the patch."""
        scale = image_size / math.sqrt(size[0] * size[1])
        height, width = (max(1, round(n * scale / self.multiple)) * self.multiple for n in size)
        return height, width

    @torch.inference_mode()
    def extract(self, images: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return one list of (C, h, w) float32 maps, coarse layers last, for each image.

        Args:
            images: tensors (3, H, W) float32 in [0, 1], sides multiples of the patch; images of one size share a pass on CUDA.
        """
        if self.device.type == "cpu" or len({image.shape for image in images}) != 1:
            batches = [image[None] for image in images]
        else:
            batches = [torch.stack(list(images))]
        maps: list[list[Tensor]] = []
        for batch in batches:
            batch = ((batch.to(self.device) - self._mean) / self._std).to(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
                layers = self._net.forward_intermediates(batch, indices=list(self.layers), stop_early=True, intermediates_only=True)
            maps.extend([layer[i].float() for layer in layers] for i in range(len(batch)))
        return maps

    @torch.inference_mode()
    def extract_tokens(self, images: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Return for each image its descriptors (C,) and maps (C, h, w), float32, one per layer.

        Transformers: the class token and the patches of each layer, both through the final norm; register tokens are dropped.
        Networks without a class token: the mean of each map, and the map as it is.

        Args:
            images: tensors (3, H, W) float32 in [0, 1], sides multiples of the patch.
        """
        if getattr(self._net, "cls_token", None) is None:
            return [([layer.mean((1, 2)) for layer in maps], maps) for maps in self.extract(images)]
        found = []
        for image in images:
            batch = ((image.to(self.device) - self._mean) / self._std)[None]
            with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
                layers = self._net.forward_intermediates(
                    batch, indices=list(self.layers), norm=True, stop_early=True, return_prefix_tokens=True, intermediates_only=True
                )
            found.append(([prefix[0, 0].float() for _, prefix in layers], [patches[0].float() for patches, _ in layers]))
        return found

    def graph(self, size: tuple[int, int], image_size: int) -> Graph:
        """Return `extract` of one image as a graph, from [0, 1] to maps, in float32 on the CPU.

        Args:
            size: (H, W) of the samples.
            image_size: side of the square with as many pixels as the network's input.
        """
        height, width = self.input_size(size, image_size)
        generator = torch.Generator().manual_seed(0)
        note = {
            "input": "image (1, 3, H, W) float32 in [0, 1], RGB, brought to H x W (bicubic, anti-aliased); mean and std are in the graph",
            "output": "one (1, C, h, w) float32 map per layer of the backbone",
            "layers": list(self.layers),
        }
        net = _Extraction(self._net, self._mean, self._std, self.layers).eval().cpu()
        return Graph(
            "rgb", net, {"image": torch.rand(1, 3, height, width, generator=generator)}, tuple(f"layer_{n}" for n in self.layers), note
        )


class _Extraction(nn.Module):
    """Normalisation and backbone in one module, a copy that may leave the device."""

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor, layers: Sequence[int]) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        self.layers = list(layers)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.net.forward_intermediates((image - self.mean) / self.std, indices=self.layers, stop_early=True, intermediates_only=True)
        return tuple(maps)


def resize_image(rgb: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (3, H, W) in [0, 1] to (3, *size), bicubic with anti-aliasing, clamped to [0, 1]."""
    if tuple(rgb.shape[1:]) == tuple(size):
        return rgb
    return F.interpolate(rgb[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)


def stack_layers(layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Bring the maps of several layers to one grid (bilinear) and stack their channels: (sum C, h, w)."""
    resized = [layer if tuple(layer.shape[1:]) == grid else F.interpolate(layer[None], size=grid, mode="bilinear")[0] for layer in layers]
    return torch.cat(resized)


def find_device(name: str) -> torch.device:
    """Return a torch device that works here.

    Raises:
        ConfigError: it does not.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second when torch was built without CUDA
        raise ConfigError(f"device {name!r} is not usable here ({str(error).splitlines()[0]}); use cpu") from error
    return device


def _load_network(architecture: str, row: Weights | None, weights: str, seed: int) -> tuple[Any, dict[str, Any]]:
    import timm

    takes_sizes = timm.models.is_model_in_modules(architecture.split(".")[0], ["vision_transformer", "eva"])
    options: dict[str, Any] = {"dynamic_img_size": True} if takes_sizes else {}
    if weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = timm.create_model(architecture, pretrained=False, **options)
        return net, {"name": RANDOM, "source": f"random, seed {seed}", "sha256": "", "licence": "none"}
    if weights != "default":
        net = timm.create_model(architecture, pretrained=False, **options)
        load_into(net, read_checkpoint(weights), weights)
        custom = Weights(Path(weights).name, architecture, "path", "", 0, "as its author says", *HALF, 1, ())
        return net, describe(custom, Path(weights))
    file = locate_file(row) if row else None
    if row is not None and file is not None:
        net = timm.create_model(architecture, pretrained=False, **options)
        load_into(net, read_checkpoint(file), row.name)
        return net, describe(row, file)
    if row is not None and not row.source.startswith("hub:"):
        raise WeightsError(
            f"weights {row.name!r} ({row.source}) are not on this machine; install that package or give a path with weights="
        )
    tag = f"{architecture}.{row.source.removeprefix('hub:')}" if row else architecture
    try:
        net = timm.create_model(tag, pretrained=True, **options)
    except Exception as error:  # the hub fails in many types: no network, gated file, unknown tag
        raise WeightsError(
            f"cannot get pretrained weights of {tag} from the hub ({type(error).__name__}); give a file with weights=PATH, "
            "use the embedded backbone efficientnet_lite0, or ask for weights=random"
        ) from error
    licence = row.licence if row else str((net.pretrained_cfg or {}).get("license", "see the hub"))
    return net, {"name": tag, "source": "hub", "sha256": "", "licence": licence}
