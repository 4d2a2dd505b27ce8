"""mrad: judge images and patches by the labelled images of other products that they resemble; no sample of the target is needed.

MRAD (ICLR 2026, arXiv 2602.00522) in its three forms: training-free, with learned projections in front of the memory, and with prompts
of CLIP's text tower besides. `fit` takes an auxiliary set: normal and defective samples with masks, of other products than those under
test; `mm3dad evaluate` chooses it and names it in every result.
Differs from its code: small defects enter the memory too (`reference=True`: only cells that a defect covers wholly).
Weights: embedded Apache-2.0; the paper's CLIP ViT-L/14@336 under MIT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mm3dad.data.organized import resize_mask
from mm3dad.errors import ConfigError, DataError
from mm3dad.features.cache import Describes, keep_features
from mm3dad.features.clip import ClipExtractor, is_clip
from mm3dad.features.tokens import TokenExtractor, Tokens, join_layers, smooth_tokens
from mm3dad.memory.labelled import LabelledMemory, mask_cells
from mm3dad.methods._config import check_ranges, option
from mm3dad.methods._detector import Detector, Needs, Progress, score_validation, strip_prefix
from mm3dad.methods._labelled import Labelled, PromptJudge, make_head, train_head, train_prompts
from mm3dad.nets.labelled_head import MemoryHead
from mm3dad.scoring.calibrate import threshold_for_rate
from mm3dad.scoring.maps import smooth_map, upsample_map
from mm3dad.scoring.zero_shot import mix_score
from mm3dad.types import Prediction, Sample


@dataclass(frozen=True)
class Config:
    """Settings of `mrad`."""

    image_size: int = option(224, "side of the square input and of the map, in pixels; the paper's CLIP runs at 518")
    backbone: str = option("efficientnet_lite0", "row of `mm3dad list weights`, or any timm architecture; published: clip_vitl14_336")
    layers: tuple[int, ...] = option((), "layers of a timm backbone; empty uses the table's")
    weights: str = option("default", "default, the path of a state dict, or random")
    variant: Literal["tf", "ft", "clip"] = option("tf", "tf learns nothing, ft projections, clip projections and prompts (CLIP backbones)")
    epochs: int = option(5, "passes over the auxiliary set that the projections learn in; published: 1, over 2,162 images")
    prompt_epochs: int = option(5, "passes that the prompts learn in")
    batch: int = option(8, "auxiliary samples in a step")
    rate: float = option(4e-4, "learning rate of Adam")
    image_quantile: float = option(0.95, "while learning, an image does not see rows more like it than this quantile, itself among them")
    patch_quantile: float = option(0.80, "the same of patches and prototypes")
    temperature: float = option(1.0, "of the softmax over the memory; lower lets the most similar rows decide")
    share: float = option(0.7, "weight of the image's own probability in the image score, the rest is the map's")
    top: float = option(0.01, "share of the highest map values that enter the image score; 0 is the maximum")
    smooth: float = option(4.0, "Gaussian smoothing of the map, in its pixels")
    reference: bool = option(False, "as published: only cells wholly inside a defect make its prototype, small defects none")
    false_alarms: float = option(
        0.01, "rate of false alarms of the threshold, which normal validation samples set; without them there is none"
    )
    feature_cache: str = option("", "folder in which features are kept between runs; empty keeps none")
    seed: int = option(0, "of random weights, initial projections and prompts, and batches")
    device: str = option("cpu", "torch device of the backbone and of the training")

    def __post_init__(self) -> None:
        check_ranges(self, (
            ("image_size", 32, 4096), ("temperature", 1e-4, 1e4), ("share", 0.0, 1.0), ("top", 0.0, 1.0), ("smooth", 0.0, 100.0),
            ("epochs", 1, 10**6), ("prompt_epochs", 1, 10**6), ("batch", 1, 10**4), ("rate", 1e-9, 1.0), ("image_quantile", 0.0, 1.0),
            ("patch_quantile", 0.0, 1.0), ("false_alarms", 1e-9, 0.999), ("seed", 0, 2**62),
        ))  # fmt: skip
        if self.variant == "clip" and not is_clip(self.backbone):
            raise ConfigError(f"variant=clip needs a CLIP backbone, for its texts, got {self.backbone}; take clip_vitl14_336")


class Mrad(Detector):
    """Two memories with labels: one of images, one of patch prototypes."""

    name = "mrad"
    Config = Config
    needs = Needs(inputs=("rgb",), settings=("auxiliary",), trains=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made: Describes[Tokens] | None = None
        self._memory = LabelledMemory()
        self._head: MemoryHead | None = None
        self._prompted: PromptJudge | None = None

    @cached_property
    def _clip(self) -> ClipExtractor:
        c = self.config
        return ClipExtractor(c.backbone, c.weights, c.image_size, c.device, c.seed)

    @property
    def extractor(self) -> Describes[Tokens]:
        """The encoder, made when it is first needed."""
        c = self.config
        if self._made is None:
            plain = c.backbone, c.layers, c.weights, c.image_size, c.device, c.seed
            made: Describes[Tokens] = self._clip if is_clip(c.backbone) else TokenExtractor(*plain)
            self._made = keep_features(made, Tokens, c.feature_cache, "tokens", c.backbone, c.layers, c.image_size, 1.0)
        return self._made

    @property
    def weights(self) -> list[dict[str, Any]]:
        return self.extractor.weights

    def fit(self, samples: Sequence[Sample], progress: Progress | None = None, validation: Sequence[Sample] | None = None) -> Mrad:
        """Remember an auxiliary set.

        Args:
            samples: normal and defective samples of other products, the defective ones with masks.
            progress: called with (stage, done, total).
            validation: normal samples of the target; they set the threshold and nothing else.
        Raises:
            DataError: an empty set, one without normal or without defective samples, a sample without label, mask or image.
        """
        if len(samples) == 0:
            raise DataError("mrad needs an auxiliary set with at least one normal sample, got none; check --auxiliary")
        report = progress or (lambda stage, done, total: None)
        self.is_fitted = False
        self._memory, self._head, self._prompted = LabelledMemory(), None, None
        for number in range(len(samples)):
            report("auxiliary set", number, len(samples))
            self._remember(samples[number])
        self._memory.require_both()
        self._threshold = None
        if self.config.variant != "tf":
            self._train(samples, report)
        self.is_fitted = True
        if scores := score_validation(validation, report, lambda sample: self.predict(sample).score):
            self._threshold = threshold_for_rate(torch.tensor(scores), self.config.false_alarms)
        return self

    def _train(self, samples: Sequence[Sample], report: Progress) -> None:
        self._make_nets()
        assert self._head is not None
        common = self._memory, lambda i: self._read(samples[i]), self.config
        train_head(self._head, *common, self.config.variant == "ft", self.training, report)
        if self._prompted is not None:
            train_prompts(self._prompted, self._head, *common, self.training, report)

    def _make_nets(self) -> None:
        """Make what the variant learns, untrained."""
        c = self.config
        self._head = make_head(self._memory, c.seed, isometric=not c.reference) if c.variant != "tf" else None
        self._prompted = PromptJudge(self._clip, c.seed) if c.variant == "clip" else None

    def _read(self, sample: Sample) -> Labelled:
        """Describe an auxiliary sample once more, as it is learned from."""
        assert sample.label is not None
        mask = resize_mask(_mask_of(sample), (self.config.image_size,) * 2).float()
        return Labelled(*self._describe(sample), mask, sample.label)

    def _remember(self, sample: Sample) -> None:
        name = sample.meta.id
        if sample.label is None:
            raise DataError(
                f"auxiliary sample {name!r} has no label; an auxiliary set needs normal and defective samples that are told apart"
            )
        if sample.label == 1 and not bool(_mask_of(sample).any()):
            raise DataError(
                f"auxiliary sample {name!r} is defective and has {'no' if sample.mask is None else 'an empty'} mask; add it to gt/"
            )
        descriptor, patches, grid = self._describe(sample)
        self._memory.add(descriptor, patches, sample.label, *mask_cells(_mask_of(sample), grid, exact=self.config.reference))

    def _describe(self, sample: Sample) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Return the image query (C,), the smoothed patches (P, C') and their grid."""
        tokens = self.extractor.describe([sample])[0]
        patches = tokens.layers[0] if len(tokens.layers) == 1 else join_layers(tokens)
        return tokens.descriptor, smooth_tokens(patches, tokens.grid), tokens.grid

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        self._require_fit()
        return [self._predict_one(sample) for sample in samples]

    @torch.no_grad()
    def _predict_one(self, sample: Sample) -> Prediction:
        c = self.config
        descriptor, patches, grid = self._describe(sample)
        image, patch = (None, None) if self._head is None else (self._head.image, self._head.patch)
        cells = self._memory.patch_probability(patches, c.temperature, patch)
        if self._prompted is not None:
            cells = self._prompted.judge([patches], [cells])[0][:, 1]
        heat = smooth_map(upsample_map(cells.view(grid), c.image_size), c.smooth)
        score = mix_score(heat, self._memory.image_probability(descriptor, c.temperature, image), c.top, c.share)
        pixels = upsample_map(heat, sample.size)
        return self._conclude(sample, score, pixels, {"rgb_map": pixels})

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        nets = {"head": self._head, "prompts": self._prompted.prompts if self._prompted else None}
        learned = {f"{name}.{key}": value.cpu() for name, net in nets.items() if net is not None for key, value in net.state_dict().items()}
        return self._memory.state() | learned, {"threshold": self._threshold}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._memory = LabelledMemory.from_state(tensors)
        self._threshold = values["threshold"]
        self._make_nets()
        if self._head is not None:
            self._head.load_state_dict(strip_prefix(tensors, "head."))
        if self._prompted is not None:
            self._prompted.prompts.load_state_dict(strip_prefix(tensors, "prompts."))


def _mask_of(sample: Sample) -> Tensor:
    return torch.zeros(sample.size, dtype=torch.bool) if sample.mask is None else sample.mask
