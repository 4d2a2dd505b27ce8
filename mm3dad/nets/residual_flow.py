"""ResAD's learned part: per level a codebook, a constraintor and a flow over residuals, and their losses together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mm3dad.nets.constraintor import Codebook, Constraintor, occ_loss
from mm3dad.nets.flow import ConditionalFlow, boundary_losses, encode_position, log_likelihoods, normal_boundary, separation_focal

MOMENTUM = 0.9  # of the boundary between likely and unlikely
CELLS = 4096  # most cells a step shows each flow


class ResidualFlow(nn.Module):
    """The networks of all levels.

    Source: ResAD++ (IJCV 2026, arXiv 2509.23741), its path for convolutional backbones; retrieval sheet, part 4.

    Args:
        widths: channels of each level's residuals, at least 2.
        codes: of each codebook.
        blocks: of each flow.
        position: channels of the position code, a multiple of 4.
        seed: of the flows' rotations.
    """

    def __init__(self, widths: Sequence[int], codes: int, blocks: int, position: int, seed: int) -> None:
        super().__init__()
        self.position = position
        self.constraintors = nn.ModuleList(Constraintor(width) for width in widths)
        self.codebooks = nn.ModuleList(Codebook(width, codes) for width in widths)
        self.flows = nn.ModuleList(ConditionalFlow(width, position, blocks, seed=seed + level) for level, width in enumerate(widths))
        self.register_buffer("boundary", torch.zeros(len(widths)))

    def loss(self, residuals: Sequence[Tensor], is_normal: Tensor, is_known: Tensor, both: bool) -> dict[str, Tensor]:
        """Return the losses of a batch by name; gradients of each reach its own part alone.

        Args:
            residuals: per level (B, C, h, w), all of one grid.
            is_normal, is_known: (B, h, w) bool; cells that are not known enter no loss.
            both: anomalous cells take part in the flows' losses too.
        """
        known = is_known.flatten()
        normal = is_normal.flatten()[known]
        terms = {name: residuals[0].new_zeros(()) for name in ("codes", "constraint", "flow")}
        for level, residual in enumerate(residuals):
            target = _to_rows(residual)[known]
            # Both grow with the square of a residual, itself a square: a batch with a cell far off would outweigh all others.
            weight = 1 / target.square().mean().clamp_min(1.0)
            terms["codes"] = terms["codes"] + weight * self.codebooks[level].loss(target[normal])  # type: ignore[operator]
            features = _to_rows(self.constraintors[level](residual))[known]
            terms["constraint"] = terms["constraint"] + weight * occ_loss(features, target, normal)
            chosen = torch.randperm(len(features), device=features.device)[:CELLS]
            place = self._place(residual)[known][chosen]
            terms["flow"] = terms["flow"] + self._flow_loss(level, features.detach()[chosen], place, normal[chosen], both)
        return terms

    def _flow_loss(self, level: int, features: Tensor, place: Tensor, is_normal: Tensor, both: bool) -> Tensor:
        normal, anomalous = log_likelihoods(*self.flows[level](features, place))
        total = -F.logsigmoid(normal[is_normal]).mean() if bool(is_normal.any()) else normal.sum() * 0
        if not both or bool(is_normal.all()) or not bool(is_normal.any()):
            return total
        with torch.no_grad():
            self.boundary[level].lerp_(normal_boundary(normal[is_normal]), 1 - MOMENTUM)
        total = total - F.logsigmoid(anomalous[~is_normal]).mean() + separation_focal(normal, anomalous, is_normal)
        return total + torch.stack(boundary_losses(normal, is_normal, self.boundary[level])).sum()

    def forward(self, residuals: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return per level the log-likelihood of being normal and the probability of being anomalous, (B, h, w) each."""
        found = []
        for level, residual in enumerate(residuals):
            features = _to_rows(self.constraintors[level](residual))
            normal, anomalous = log_likelihoods(*self.flows[level](features, self._place(residual)))
            grid = residual.shape[0], *residual.shape[2:]
            found.append((normal.view(grid), torch.stack([normal, anomalous]).softmax(0)[1].view(grid)))
        return found

    def _place(self, residual: Tensor) -> Tensor:
        code = encode_position(self.position, (residual.shape[2], residual.shape[3])).to(residual)
        return _to_rows(code.expand(len(residual), *code.shape))


def _to_rows(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
