"""cfm: image and point features predict each other; a defect is where both predictions fail.

CFM, "Multimodal Industrial Anomaly Detection by Crossmodal Feature Mapping" (CVPR 2024; multimodal sheet, part 6). Differs from its code
(`reference=True` restores it): features are centred and brought to one spread, residuals are in units of held-out normal cells, holes
in the cloud do not enter the cells, one map serves all metrics, and borders of the map are not darkened. Training stops early on held-out
normal samples. Weights: embedded Apache-2.0; DINO Apache-2.0; Point-MAE's authors state no licence.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mm3dad.fusion.mapping import join_product, mapping_residual
from mm3dad.methods._config import check_ranges, option
from mm3dad.methods._detector import Progress
from mm3dad.methods._mapping import MappingConfig, MappingDetector, Pairs, Registered
from mm3dad.nets.mapping import CrossMapping, mapping_loss


@dataclass(frozen=True)
class Config(MappingConfig):
    """Settings of `cfm`."""

    depth: int = option(3, "linear layers of each mapping; published: 3, and 7 on Eyecandies")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, (("depth", 2, 64),))


class CFM(MappingDetector):
    """Two mappings and the product of their residuals."""

    name = "cfm"
    Config = Config

    def _build(self, rgb_channels: int, xyz_channels: int) -> dict[str, nn.Module]:
        return {"mapping": CrossMapping(rgb_channels, xyz_channels, self.config.depth)}

    def _learn(self, pairs: Pairs, held_out: Pairs | None, report: Progress) -> None:
        self._train("mapping", pairs, held_out, self._loss, self.config.epochs, report)

    def _loss(self, rgb: Tensor, xyz: Tensor) -> dict[str, Tensor]:
        predicted = self._nets["mapping"](rgb, xyz)
        return {"rgb": mapping_loss(predicted[0], rgb), "xyz": mapping_loss(predicted[1], xyz)}

    def _compare(self, found: Registered) -> dict[str, Tensor]:
        rgb, xyz = self._nets["mapping"](found.rgb, found.xyz)
        return {"rgb": mapping_residual(rgb, found.rgb, found.held), "xyz": mapping_residual(xyz, found.xyz, found.held)}

    def _join(self, residuals: list[Tensor]) -> Tensor:
        return join_product(residuals)
