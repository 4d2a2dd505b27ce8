"""A network of voting convolutions on occupied cells: biases that keep empty space empty, and a head that scores each cell.

Vote3Deep (ICRA 2017, arXiv 1609.06666; trained sheet, part 7), its model D: two hidden layers of side 3, and a linear layer that reaches as
far as an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm3dad.ops import look_up, sparse_vote_conv


class Read(NamedTuple):
    """What the network says of the cells it was given.

    Args:
        features: (M, 2 C) floating, the activations of both hidden layers.
        scores: (M,) floating, above 0 on an object.
        activity: () floating, activations of both hidden layers, summed over channels and averaged over the given cells: the L1 penalty.
        operations: multiply-adds.
    """

    features: Tensor
    scores: Tensor
    activity: Tensor
    operations: int


class VotingLayer(nn.Module):
    """A voting convolution whose bias is never above 0, with He's initialisation.

    Args:
        channels, out: of input and output.
        side: of the kernel, odd.
    """

    def __init__(self, channels: int, out: int, side: int) -> None:
        super().__init__()
        # A cloud is a surface: about side^2 of the side^3 cells around one are occupied.
        self.weight = nn.Parameter(torch.randn(out, channels, side, side, side) * (2 / (channels * side**2)) ** 0.5)
        self.depth = nn.Parameter(torch.full((out,), 0.05))

    @property
    def bias(self) -> Tensor:
        """(C',) at most 0: with a ReLU behind it, cells without a vote stay empty."""
        return -self.depth.abs()


class VotingNet(nn.Module):
    """Two hidden voting layers and a linear head.

    Args:
        channels: of a cell's input.
        width: of the hidden layers; published: 8.
        reach: side of the head's kernel, odd.
    """

    scale: Tensor

    def __init__(self, channels: int, width: int = 8, reach: int = 5) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.hidden = nn.ModuleList([VotingLayer(channels, width, 3), VotingLayer(width, width, 3)])
        self.head = VotingLayer(width, 1, reach)
        self.reach = 1 + 1 + reach // 2  # cells that a vote travels through all layers

    def standardise(self, values: Tensor) -> None:
        """Bring the channels of typical cells (M, C) to size 1 from now on; without a shift, for an empty cell is 0."""
        self.scale = 1 / values.square().mean(0).sqrt().clamp_min(1e-6)

    def forward(self, cells: Tensor, values: Tensor) -> Read:
        """Read features and scores at the given cells, though votes travel through empty ones too.

        Args:
            cells: (M, 3) int64, distinct; several clouds at once where they lie out of each other's reach.
            values: (M, C) floating.
        Raises:
            ShapeError, ConfigError: as `sparse_vote_conv`.
        """
        at, active = cells, values * self.scale
        features, activity, operations = [], values.new_zeros(()), 0
        for layer in self.hidden:
            votes = sparse_vote_conv(at, active, layer.weight, layer.bias)
            active = functional.relu(votes.values)
            alive = (active.detach() > 0).any(1)
            at, active = votes.cells[alive], active[alive]
            features.append(look_up(at, active, cells))
            activity = activity + active.sum() / max(1, len(cells))
            operations += votes.operations
        votes = sparse_vote_conv(at, active, self.head.weight, within=cells)
        scores = look_up(votes.cells, votes.values, cells)[:, 0] + self.head.bias
        return Read(torch.cat(features, dim=1), scores, activity, operations + votes.operations)


def join_clouds(clouds: Sequence[Tensor], reach: int) -> Tensor:
    """Put the cells (M, 3) of several clouds into one grid, out of each other's reach: their order stays, one cloud after the other.

    Args:
        clouds: int64, at least one cell each.
        reach: cells that votes travel, all layers together.
    """
    placed, start = [], 0
    for cells in clouds:
        shift = -cells.amin(0)
        shift[0] += start
        placed.append(cells + shift)
        start = int(placed[-1][:, 0].max()) + 2 * reach + 1
    return torch.cat(placed)


def mined_hinge_loss(scores: Tensor, target: Tensor, ratio: float = 3.0) -> Tensor:
    """Return the hinge loss max(0, 1 - y s), the mean over positives plus the mean over the hardest negatives.

    Vote3Deep mines its hardest false positives every ten epochs; here those of the batch itself.

    Args:
        scores: (M,) floating.
        target: (M,) 1 for an object, 0 for none, -1 for neither.
        ratio: negatives for one positive; at least a tenth of all negatives.
    """
    positive, negative = functional.relu(1 - scores[target == 1]), functional.relu(1 + scores[target == 0])
    count = min(len(negative), max(round(ratio * len(positive)), len(negative) // 10, 1))
    return sum((part.mean() for part in (positive, negative.topk(count).values) if len(part)), start=scores.new_zeros(()))
