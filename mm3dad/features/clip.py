"""CLIP's image encoder through open_clip: an image descriptor, and local patch features of its value-value path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mm3dad.errors import ConfigError, WeightsError
from mm3dad.features.rgb import find_device, resize_image
from mm3dad.features.tokens import Tokens, require_image
from mm3dad.features.weights import RANDOM, TABLE, describe, load_into, locate_file, read_checkpoint
from mm3dad.types import Sample

OPEN_CLIP = "open_clip:"


def is_clip(backbone: str) -> bool:
    """Say whether a name of the weight table is a CLIP model of open_clip."""
    return backbone in TABLE and TABLE[backbone].source.startswith(OPEN_CLIP)


class ClipExtractor:
    """The image tower of a CLIP model on square inputs (MRAD; retrieval sheet, 3.1).

    Args:
        backbone: a CLIP row of the weight table.
        weights: "default" (local cache, else open_clip's download), "random", or the path of a state dict in open_clip's names
            or of the image tower alone.
        image_size: side of the input, rounded to a multiple of the patch; 518 is published.
        device: torch device.
        seed: of random weights.

    Raises:
        ConfigError: open_clip is not installed, or the backbone is no CLIP row.
        WeightsError: weights missing, damaged or of another architecture.
    """

    def __init__(self, backbone: str, weights: str, image_size: int, device: str = "cpu", seed: int = 0) -> None:
        if not is_clip(backbone):
            raise ConfigError(f"{backbone!r} is no CLIP model of the weight table; choose {', '.join(filter(is_clip, TABLE))}")
        row = TABLE[backbone]
        self.image_size = max(1, round(image_size / row.patch_size)) * row.patch_size
        self._patch = row.patch_size
        self.device = find_device(device)
        self._visual, self.description = _load_visual(backbone, weights, seed)
        self._visual = self._visual.eval().requires_grad_(False).to(self.device)
        self._mean = torch.tensor(row.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(row.std, device=self.device).view(3, 1, 1)

    @property
    def weights(self) -> list[dict[str, Any]]:
        """What a result says of the weights."""
        return [self.description]

    @torch.inference_mode()
    def describe(self, samples: Sequence[Sample]) -> list[Tokens]:
        """Return the descriptor and the local features of each sample's image.

        Raises:
            DataError: a sample without an image.
        """
        from mm3dad.nets.clip_vv import encode_image

        found = []
        for sample in samples:
            image = resize_image(require_image(sample), (self.image_size, self.image_size)).to(self.device)
            descriptor, local = encode_image(self._visual, ((image - self._mean) / self._std)[None])
            side = self.image_size // self._patch
            found.append(Tokens(descriptor[0].float().cpu(), [local[0].float().cpu()], (side, side)))
        return found


def _load_visual(backbone: str, weights: str, seed: int) -> tuple[Any, dict[str, Any]]:
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(f"{backbone} needs the package open_clip_torch; pip install 'mm3dad[clip]'") from error
    row = TABLE[backbone]
    file = Path(weights) if weights not in ("default", RANDOM) else locate_file(row) if weights == "default" else None
    tag = row.source.removeprefix(OPEN_CLIP) if weights == "default" and file is None else None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            visual = open_clip.create_model(row.architecture, pretrained=tag).visual
    except Exception as error:  # the hub fails in many types: no network, unknown tag
        raise WeightsError(
            f"cannot get {row.name} through open_clip ({type(error).__name__}); give a file with weights=PATH, "
            "use the embedded backbone efficientnet_lite0, or ask for weights=random"
        ) from error
    if weights == RANDOM:
        return visual, {"name": RANDOM, "source": f"random, seed {seed}", "sha256": "", "licence": "none"}
    if file is None:
        return visual, {"name": row.name, "source": row.source, "sha256": "", "licence": row.licence}
    state = read_checkpoint(file)
    tower = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    load_into(visual, tower or state, str(file))
    return visual, describe(replace(row, sha256=""), file)
