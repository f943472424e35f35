"""Parts shared by TransNeXt's attentions (arXiv 2311.17132): temperatures, learned queries, position biases.

The biases come from an MLP of the logarithmic distances in both directions, so that they fit any map.
"""

from dataclasses import dataclass
from math import exp, log, log2

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.ops._autocast import wide
from visionattn.ops.query_tiles import in_tiles
from visionattn.utils.factory import FactoryKwargs

__all__ = ["CosineParts", "PositionTable", "log_position_bias"]

# Hidden width of the MLP of positions.
_HIDDEN = 512
# Start of the temperature, before its softplus.
_TEMPERATURE = log(exp(1 / 0.24) - 1)

# The largest distance of the nominal map becomes this before the logarithm, and 1 after it.
_LARGEST = 8


class CosineParts(nn.Module):
    """The parameters of cosine attention, under their official names."""

    def add_cosine_parts(self, num_heads: int, head_dim: int, dd: FactoryKwargs) -> None:
        """Adds the temperature and the learned query of each head, and the MLP of positions.

        Args:
            num_heads: Heads.
            head_dim: Width of each.
            dd: device and dtype.
        """
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), _TEMPERATURE, **dd))
        self.query_embedding = nn.Parameter(torch.empty(num_heads, 1, head_dim, **dd))
        nn.init.trunc_normal_(self.query_embedding, std=0.02)
        self.cpb_fc1 = nn.Linear(2, _HIDDEN, **dd)
        self.cpb_fc2 = nn.Linear(_HIDDEN, num_heads, **dd)


@dataclass(frozen=True)
class PositionTable:
    """The bias of each head for each pair of distances, and which pair of positions has which.

    Args:
        values: `(heads, distances of rows, distances of columns)`.
        rows: The row distance of each row of the map to each pooled one, `(H, H')`.
        columns: Likewise, `(W, W')`.
    """

    values: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def bias(self, some: slice = slice(None)) -> torch.Tensor:
        """The bias of the positions in some rows with each pooled position, `(heads, h * W, H' * W')`."""
        rows, columns = self.rows[some], self.columns
        found = self.values.index_select(1, rows.flatten()).index_select(2, columns.flatten())
        found = found.unflatten(2, columns.shape).unflatten(1, rows.shape)
        return found.permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)


def log_position_bias(
    fc1: nn.Linear, fc2: nn.Linear, grid: tuple[int, int], pooled: tuple[int, int], nominal: tuple[int, int]
) -> PositionTable:
    """The bias of the score of each position with each pooled position. The MLP sees each pair of distances once.

    Args:
        fc1: From the two distances.
        fc2: To the heads.
        grid: `(H, W)`.
        pooled: `(H', W')` of the keys, which lie at the middles of their cells of adaptive pooling.
        nominal: `(H, W)` of the map whose largest distances are the unit.
    """
    (rows, row_index), (columns, column_index) = (
        _axis(side, cells, span, fc1.weight) for side, cells, span in zip(grid, pooled, nominal, strict=True)
    )

    def some_rows(_: slice, own: torch.Tensor) -> torch.Tensor:
        pairs = torch.stack((own.unsqueeze(1).expand(-1, len(columns)), columns.expand(len(own), -1)), -1)
        return fc2(F.relu(fc1(pairs)))

    # There are about four pairs of distances a position, each with two hidden maps.
    values = torch.cat(in_tiles(some_rows, (rows,), 2 * _HIDDEN * len(columns), dim=0))
    return PositionTable(values.permute(2, 0, 1), row_index, column_index)


def _axis(side: int, cells: int, nominal: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct distances along an axis, scaled, and the index of each pair's distance, `(side, cells)`."""
    cell = torch.arange(cells, device=like.device)
    # Twice the middle of each cell, a whole number; the last cell ends where the axis does.
    middles = cell * side // cells + ((cell + 1) * side + cells - 1) // cells - 1
    least, most = 1 - side - (cells - 1) * side // cells, 2 * (side - 1) + 1 - -(-side // cells)
    step = 1 if side % cells else 2
    position = 2 * torch.arange(side, device=like.device)
    index = (position.unsqueeze(1) - middles - least) // step
    distances = torch.arange(least, most + 1, step, device=like.device).to(wide(like)) / 2
    scaled = distances * (_LARGEST / max(nominal - 1, 1))
    return (scaled.sign() * (scaled.abs() + 1).log2() / log2(_LARGEST)).to(like.dtype), index
