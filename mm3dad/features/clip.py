"""CLIP's image encoder through open_clip: an image descriptor, and local patch features of its value-value path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
        self._model, self.description, self._has_text = _load_model(backbone, weights, seed)
        self._visual = self._model.visual.eval().requires_grad_(False).to(self.device)
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

    def project(self, patches: Tensor) -> Tensor:
        """Bring local features (P, C) to the space that images and texts share: (P, E)."""
        return patches @ self._visual.proj.to(patches)

    @cached_property
    def text(self) -> Any:
        """The open_clip model with its text tower, frozen, on the device.

        Raises:
            WeightsError: the weights are of the image tower alone.
        """
        if not self._has_text:
            raise WeightsError(
                "these weights hold CLIP's image tower alone, and prompts need its text tower; give those of the whole model"
            )
        return self._model.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def embed_text(self, phrase: str) -> Tensor:
        """Return the token embeddings (T, width) of a phrase, from the start token to the end token."""
        import open_clip

        tokens = open_clip.tokenize([phrase])[0]
        return self.text.token_embedding(tokens[: int(tokens.argmax()) + 1].to(self.device)).float()


def _load_model(backbone: str, weights: str, seed: int) -> tuple[Any, dict[str, Any], bool]:
    """Return the open_clip model, what a result says of its weights, and whether they fill its text tower."""
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
            model = open_clip.create_model(row.architecture, pretrained=tag)
    except Exception as error:  # the hub fails in many types: no network, unknown tag
        raise WeightsError(
            f"cannot get {row.name} through open_clip ({type(error).__name__}); give a file with weights=PATH, "
            "use the embedded backbone efficientnet_lite0, or ask for weights=random"
        ) from error
    if weights == RANDOM:
        return model, {"name": RANDOM, "source": f"random, seed {seed}", "sha256": "", "licence": "none"}, True
    if file is None:
        return model, {"name": row.name, "source": row.source, "sha256": "", "licence": row.licence}, True
    state = read_checkpoint(file)
    tower = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    has_text = "token_embedding.weight" in state
    if has_text:
        load_into(model, state, str(file))
    else:
        load_into(model.visual, tower or state, str(file))
    return model, describe(replace(row, sha256=""), file), has_text
