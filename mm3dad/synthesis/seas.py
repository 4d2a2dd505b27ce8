"""seas: pictures of defects, with masks, from a diffusion model that has learned a part's defects from a few labelled images.

"SeaS: Few-shot Industrial Anomaly Image Generation with Separation and Sharing Fine-tuning" (ICCV 2025, arXiv 2410.14987; trained sheet,
part 3). It learns from defects, so what is trained on its pictures is not unsupervised, and what it learned from must leave the test set.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm3dad import files
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.nets.defect_diffusion import DefectDiffusion
from mm3dad.nets.latent_diffusion import TINY, open_diffusion
from mm3dad.nets.training import Task, TrainingRun, TrainingSettings, train
from mm3dad.synthesis._labelled import LabelledPictures, square_picture
from mm3dad.synthesis.synthesizers import Synthesizer, setting
from mm3dad.types import Sample

Report = Callable[[str, int, int], None]
Losses = Callable[[Tensor, Tensor, list[int], Tensor], dict[str, Tensor]]
FORMAT = 1
EPOCH = 100  # steps between two checkpoints
TRIES = 5  # pictures drawn for one defect before an empty mask is an error


@dataclass(frozen=True)
class SeasConfig:
    """Settings of `seas`; the defaults are the published ones."""

    weights: str = setting("stable-diffusion-v1-4", "stable-diffusion-v1-4, a diffusers folder of its form, or tiny: small and random")
    steps: int = setting(800, "training steps of words and U-Net, for each type of defect")
    mask_steps: int = setting(800, "training steps of the mask branch, for each type of defect")
    rate: float = setting(4e-6, "learning rate of the U-Net")
    word_rate: float = setting(4e-5, "learning rate of the new words")
    mask_rate: float = setting(5e-4, "learning rate of the mask branch")
    batch: int = setting(2, "pictures with defects in a step, and as many normal ones")
    normals: int = setting(60, "normal training pictures that are learned from, at most")
    turn: bool = setting(True, "turn and mirror training pictures; false for parts that always lie the same way")
    sampling: int = setting(25, "steps of drawing a picture, at least 3")
    guidance: float = setting(5.0, "weight of the words; published: 5 for MVTec 3D-AD, 8 for MVTec AD, 2 for VisA")
    threshold: float = setting(0.2, "of the mask's probability")
    train_seed: int = setting(0, "of training, and of tiny's weights")
    device: str = setting("cpu", "torch device")

    def __post_init__(self) -> None:
        whole = min(self.steps, self.mask_steps, self.batch, self.normals) >= 1 and self.sampling >= 3
        if not whole or not min(self.rate, self.word_rate, self.mask_rate) > 0 or not 0 < self.threshold < 1 or not self.guidance >= 0:
            raise ConfigError(
                f"seas needs steps, mask_steps, batch and normals of 1 or more, sampling >= 3, rates above 0, guidance >= 0 and threshold "
                f"in (0, 1), got {self}"
            )


class Seas(Synthesizer):
    """New pictures of known defects from a diffusion model that learned them from a few labelled images (SeaS); RGB only."""

    name = "seas"
    inputs = ("rgb",)
    learns = True
    Config = SeasConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.kinds: list[str] = []
        self._net: DefectDiffusion | None = None

    def fit(
        self, defects: Sequence[Sample], normals: Sequence[Sample], run: TrainingRun | None = None, report: Report | None = None
    ) -> None:
        """Learn words and U-Net, then the mask branch.

        Args:
            defects: labelled, with masks; `meta.defect` names their type.
            normals: of the same product.
            run: where checkpoints go; a later call goes on from there to the same result.
            report: called with (stage and loss, done, total).

        Raises:
            DataError: no defect, no normal sample, a defect without a mask, or a sample without an image.
            TrainingError: a training diverged; the last good state is in the checkpoint.
        """
        c = self.config
        if not len(defects) or not len(normals):
            raise DataError(
                f"seas learns from labelled defects and normal samples of one product, got {len(defects)} and {len(normals)}; "
                "give a category whose test split has defects with masks, or take dual or cutpaste, which need none"
            )
        for sample in (*defects, *normals):
            self._check(sample)
        for sample in defects:
            if sample.mask is None or not bool(sample.mask.any()):
                raise DataError(
                    f"defect {sample.meta.id!r} has {'no' if sample.mask is None else 'an empty'} mask, and seas learns where defects are; "
                    "add its ground truth, or take dual or cutpaste, which need none"
                )
        self.kinds = sorted({str(sample.meta.defect) for sample in defects})
        net = DefectDiffusion(open_diffusion(c.weights, c.train_seed), len(self.kinds), c.train_seed).to(c.device)
        data = LabelledPictures(defects, normals, [self.kinds.index(str(sample.meta.defect)) for sample in defects], net.model.size)
        unet, words = net.model.unet, net.words
        groups = [{"params": list(unet.parameters()), "lr": c.rate}, {"params": list(words.parameters()), "lr": c.word_rate}]
        noise_steps = len(net.model.signal)

        def learn(name: str, modules: dict[str, nn.Module], groups: list[dict[str, Any]], steps: int, losses: Losses) -> None:
            total = steps * len(self.kinds)

            def batches(epoch: int, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
                return [data.draw(generator, c.batch, c.turn, noise_steps) for _ in range(min(EPOCH, total - epoch * EPOCH))]

            task = Task(
                name,
                {"kinds": self.kinds, "samples": len(data.pictures), **dataclasses.asdict(c)},
                modules,
                lambda: torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.01),
                math.ceil(total / EPOCH),
                batches,
                lambda batch: losses(*data.take(batch[0], batch[1], c.device), batch[2]),
            )
            train(task, TrainingSettings(seed=c.train_seed, device=c.device), run, report)

        learn("words", {"unet": unet, "words": words}, groups, c.steps, net.word_losses)
        unet.requires_grad_(False)
        learn("masks", {"masks": net.masks}, [{"params": list(net.masks.parameters()), "lr": c.mask_rate}], c.mask_steps, net.mask_losses)
        self._net = net

    @torch.no_grad()
    def make(self, sample: Sample, generator: torch.Generator, source: Sample | None = None) -> Sample:
        """Return a new picture that began as the sample's, of one learned type of defect, without points: nothing measured them.

        Raises:
            DataError: no image, nothing learned yet, or pictures in which the mask branch finds no defect.
        """
        self._check(sample)
        assert sample.rgb is not None
        net = self._require_fit()
        c = self.config
        kind = int(torch.randint(len(self.kinds), (), generator=generator))
        for _ in range(TRIES):
            picture, chance = net.draw(square_picture(sample, net.model.size).to(c.device), kind, generator, c.sampling, c.guidance)
            chance, picture = (
                functional.interpolate(one, size=sample.size, mode="bilinear", antialias=True).cpu()
                for one in (chance[None, None], picture[None])
            )
            mask = chance[0, 0] > c.threshold
            if bool(mask.any()):
                return self._finish(sample, mask, rgb=picture[0].clamp(0, 1), xyz=None, valid=None)
        raise DataError(
            f"the mask branch finds no defect of type {self.kinds[kind]!r} in {TRIES} pictures; train longer or lower threshold"
        )

    def _require_fit(self) -> DefectDiffusion:
        if self._net is None:
            raise DataError("seas makes defects like those it learned from, and learned none yet; call fit or load")
        return self._net

    def describe(self) -> dict[str, Any]:
        """Return what a result says of the model: weights, types of defects, and that random weights draw nothing of worth."""
        words: dict[str, Any] = {"weights": self.config.weights, "source": self._require_fit().model.source, "kinds": self.kinds}
        if self.config.weights == TINY:
            words["note"] = "random weights: what the pictures look like means nothing"
        return words

    def save(self, folder: str | Path, identity: dict[str, Any] | None = None) -> None:
        """Write what was learned, and what it was learned from, as safetensors and JSON; the frozen parts stay where they came from."""
        net = self._require_fit()
        modules = {"unet": net.model.unet, "words": net.words, "masks": net.masks}
        tensors = {f"{name}/{key}": value.cpu() for name, module in modules.items() for key, value in module.state_dict().items()}
        content = {"format": FORMAT, "synthesizer": self.name, "config": dataclasses.asdict(self.config), "identity": identity or {}}
        files.write_sealed(Path(folder) / "seas.json", {**content, **self.describe()}, tensors, "seas")

    @classmethod
    def load(cls, folder: str | Path) -> Seas:
        """Read what `save` wrote.

        Raises:
            ModelError: missing, damaged, or of another kind.
            WeightsError: the frozen parts are gone.
        """
        path = Path(folder) / "seas.json"
        content = _read(path)
        try:
            made = cls(SeasConfig(**content["config"]))
            made.kinds = list(content["kinds"])
            net = DefectDiffusion(open_diffusion(made.config.weights, made.config.train_seed), len(made.kinds), made.config.train_seed)
            tensors = files.read_sealed(path, content["tensors"])
            for name, module in {"unet": net.model.unet, "words": net.words, "masks": net.masks}.items():
                own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
                module.load_state_dict(own)
                module.eval()
        except (KeyError, TypeError, RuntimeError) as error:
            raise ModelError(f"{path} is damaged or foreign ({str(error).partition(chr(10))[0]}); learn it again") from error
        made._net = net.to(made.config.device)
        return made

    @staticmethod
    def identify(folder: str | Path) -> dict[str, Any]:
        """Return the identity that `save` was given.

        Raises:
            ModelError: missing, or of another kind.
        """
        return dict(_read(Path(folder) / "seas.json")["identity"])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"expected a model of seas at {path}, found none; run mm3dad synthesize seas, or call fit and save")
    try:
        content = files.read_json(path)
    except DataError as error:
        raise ModelError(f"{path} is damaged ({error}); learn it again") from error
    if not isinstance(content, dict) or content.get("synthesizer") != "seas" or content.get("format") != FORMAT:
        raise ModelError(f"{path} is no model of seas in format {FORMAT}; learn it again")
    return content
