"""mentor3ad: crossmodal mapping with a mentor, a narrow feature of both modalities that guides the prediction of each; three voters.

Mentor3AD (arXiv 2505.21420, withdrawn there over its licence), a RECONSTRUCTION: no code and no formula of the vote is public, and reviews
name the parts only (trained sheet, part 6). Theirs: fusion of both modalities to a mentor by a contrast of aligned patches, mapping
guided by it, a vote of several maps. Ours: all widths and epochs, how the contrast reaches the mentor, the voters and how they join, and
the features of `cfm`. Weights: embedded Apache-2.0; DINO Apache-2.0; Point-MAE's authors state no licence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mm3dad.errors import ConfigError
from mm3dad.fusion.mapping import mapping_residual
from mm3dad.methods._config import check_ranges, option
from mm3dad.methods._detector import Progress
from mm3dad.methods._mapping import MappingConfig, MappingDetector, Rows
from mm3dad.methods._registered import Registered
from mm3dad.nets.mapping import CrossMapping, MentorFusion, mapping_loss


@dataclass(frozen=True)
class Config(MappingConfig):
    """Settings of `mentor3ad`."""

    mentor: int = option(16, "width of the mentor feature; wide, it would carry a defect into its own prediction")
    mentor_epochs: int = option(10, "most passes in which the mentor learns, before the mappings")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, (("mentor", 1, 4096), ("mentor_epochs", 1, 10**6)))
        if self.reference:
            raise ConfigError("mentor3ad has no reference=true, since no code of it is public; leave it out, or use cfm")


class Mentor3AD(MappingDetector):
    """Mentor of fusion, guided mappings, and the vote of two residuals and of the contrast."""

    name = "mentor3ad"
    Config = Config

    def _build(self, rgb: int, xyz: int, place: int) -> dict[str, nn.Module]:
        c = self.config
        return {"mentor": MentorFusion(rgb, xyz, c.mentor), "guided": CrossMapping(rgb, xyz, c.depth, c.mentor + place, c.hidden)}

    def _learn(self, rows: Rows, held_out: Rows | None, report: Progress) -> None:
        mentor: MentorFusion = self._nets["mentor"]  # type: ignore[assignment]
        self._train("mentor", rows, held_out, lambda rgb, xyz, place: mentor.loss(rgb, xyz), self.config.mentor_epochs, report)
        guided = self._guide(rows)
        self._train("guided", guided, None if held_out is None else self._guide(held_out), self._loss, self.config.epochs, report)

    @torch.no_grad()
    def _guide(self, rows: Rows) -> Rows:
        """Put the mentor's feature before the place."""
        rgb, xyz, place = rows
        return rgb, xyz, torch.cat([self._nets["mentor"](rgb, xyz), place], dim=1)

    def _loss(self, rgb: Tensor, xyz: Tensor, guide: Tensor) -> dict[str, Tensor]:
        predicted = self._nets["guided"](rgb, xyz, guide)
        return {"rgb": mapping_loss(predicted[0], rgb), "xyz": mapping_loss(predicted[1], xyz)}

    def _compare(self, found: Registered, place: Tensor) -> dict[str, Tensor]:
        rgb, xyz = self._nets["guided"](*self._guide((found.rgb, found.xyz, place)))
        mentor: MentorFusion = self._nets["mentor"]  # type: ignore[assignment]
        return {
            "rgb": mapping_residual(rgb, found.rgb, found.held),
            "xyz": mapping_residual(xyz, found.xyz, found.held),
            "contrast": mapping_residual(*mentor.embed(found.rgb, found.xyz), found.held),
        }
