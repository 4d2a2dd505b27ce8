"""cfm: image and point features predict each other; a defect is where both predictions fail.

CFM, "Multimodal Industrial Anomaly Detection by Crossmodal Feature Mapping" (CVPR 2024; multimodal sheet, part 6). Differs from its code
(`reference=True` restores it): features are centred and brought to one spread, both mappings see the place of a cell and have wide hidden
layers, residuals count from what held-out normal cells have, holes in the cloud do not enter the cells, one map serves all metrics,
borders of the map are not darkened. Training stops early on held-out normal samples.
Weights: embedded Apache-2.0; DINO Apache-2.0; Point-MAE's authors state no licence.
"""

from __future__ import annotations

from torch import Tensor, nn

from mm3dad.fusion.mapping import mapping_residual
from mm3dad.methods._detector import Progress
from mm3dad.methods._mapping import MappingConfig, MappingDetector, Rows
from mm3dad.methods._registered import Registered
from mm3dad.nets.mapping import CrossMapping, mapping_loss


class CFM(MappingDetector):
    """Two mappings and the product of their residuals."""

    name = "cfm"
    Config = MappingConfig

    def _build(self, rgb: int, xyz: int, place: int) -> dict[str, nn.Module]:
        c = self.config
        return {"mapping": CrossMapping(rgb, xyz, c.depth, place, 0 if c.reference else c.hidden)}

    def _learn(self, rows: Rows, held_out: Rows | None, report: Progress) -> None:
        self._train("mapping", rows, held_out, self._loss, self.config.epochs, report)

    def _loss(self, rgb: Tensor, xyz: Tensor, place: Tensor) -> dict[str, Tensor]:
        predicted = self._nets["mapping"](rgb, xyz, place)
        return {"rgb": mapping_loss(predicted[0], rgb), "xyz": mapping_loss(predicted[1], xyz)}

    def _compare(self, found: Registered, place: Tensor) -> dict[str, Tensor]:
        rgb, xyz = self._nets["mapping"](found.rgb, found.xyz, place)
        return {"rgb": mapping_residual(rgb, found.rgb, found.held), "xyz": mapping_residual(xyz, found.xyz, found.held)}
