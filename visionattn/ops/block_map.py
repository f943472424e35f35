"""Selects the key blocks of each query block by block means (SpargeAttn, ICML 2025, arXiv 2502.18137)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from visionattn.utils.arguments import check_choice, pair

from ._autocast import wide, without_autocast
from .masked_attention import Blocks

__all__ = ["BlockMap", "hilbert_order"]

# One for all heads or one for each.
Level = float | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class BlockMap:
    """Selects key blocks with the best mean keys for a block's mean query, and all with dissimilar tokens.

    A block whose tokens are not alike is doubtful: its mean says nothing, so such queries see everything, and such keys
    are seen by all. So is a last block that is not full.

    Args:
        block: Tokens in a block of queries and in one of keys.
        topk: Share of the key blocks that a query block sees, from 0 to 1, one at least: a number or one for each head.
        cdf: In place of `topk`: the largest weights are taken while their sum is at most this share, from 0 to 1.
        sim_threshold: Mean cosine of the tokens of a block above which they are alike; by default 0.6 with `cdf`, -0.1
            (all full blocks are alike) without. A number or one for each head.
        sink: Whether all see the first block of keys.
        smooth: Whether the mean key is taken off before: blocks are compared by what distinguishes them.
        order: Which tokens are consecutive: `raster`, row by row, or `hilbert`, along a curve whose pieces are compact.

    Raises:
        ValueError: If an argument is out of range.
    """

    block: int | Sequence[int] = (128, 64)
    topk: Level | None = None
    cdf: Level | None = None
    sim_threshold: Level | None = None
    sink: bool = False
    smooth: bool = True
    order: str = "raster"

    def __post_init__(self) -> None:
        pair("block", self.block)
        check_choice("order", self.order, ("raster", "hilbert"))
        if self.topk is not None and self.cdf is not None:
            raise ValueError(f"topk and cdf exclude each other, got topk={self.topk} and cdf={self.cdf}")
        for name, level in (("topk", self.topk), ("cdf", self.cdf)):
            if level is not None and not all(0 <= share <= 1 for share in _several(level)):
                raise ValueError(f"{name} must be from 0 to 1, got {level}")

    def check_heads(self, num_heads: int) -> None:
        """Raises a ValueError if a level is given for another number of heads."""
        for name in ("topk", "cdf", "sim_threshold"):
            level = getattr(self, name)
            if level is not None and len(_several(level)) not in (1, num_heads):
                raise ValueError(f"{name} must be one number or {num_heads}, one for each head, got {level}")

    def choose(
        self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int], prefix: int = 0
    ) -> tuple[torch.Tensor, Blocks, Blocks]:
        """The map `(B, heads, query blocks, key blocks)`, bool, without gradient, and the blocks of both sides.

        Args:
            q: Queries `(B, heads, N, d)`.
            k: Keys, as many.
            grid: Height and width of the map that the tokens are of.
            prefix: Number of extra tokens in front, which are in no block.
        """
        sides = pair("block", self.block)
        tokens = grid[0] * grid[1]
        order = hilbert_order(grid, q.device) if self.order == "hilbert" else None
        with torch.no_grad(), without_autocast(q):
            q, k = (x[:, :, prefix:].to(wide(q)) for x in (q, k))
            if order is not None:
                q, k = q.index_select(2, order), k.index_select(2, order)
            if self.smooth:
                k = k - k.mean(2, keepdim=True)
            default = -0.1 if self.cdf is None else 0.6
            alike = _level(default if self.sim_threshold is None else self.sim_threshold, q)
            (q_mean, q_alike), (k_mean, k_alike) = (
                _pool(x, length, alike) for x, length in zip((q, k), sides, strict=True)
            )
            scores = (q_mean @ k_mean.mT * q.size(-1) ** -0.5).masked_fill(~k_alike.unsqueeze(-2), float("-inf"))
            # No key block alike: all are seen in any case.
            weights, number = scores.softmax(-1).nan_to_num(0).sort(-1, descending=True)
            blocks = k_mean.size(2)
            if self.cdf is not None:
                count = (weights.cumsum(-1) <= _level(self.cdf, q).unsqueeze(-1)).sum(-1, keepdim=True)
            else:
                shares = _several(0.5 if self.topk is None else self.topk)
                count = torch.tensor([int(share * blocks) for share in shares], device=q.device).view(1, -1, 1, 1)
            best = torch.arange(blocks, device=q.device) < count.clamp_min(1)
            seen = torch.zeros_like(number, dtype=torch.bool).scatter(-1, number, best.expand(number.shape))
            seen = seen | ~k_alike.unsqueeze(-2) | ~q_alike.unsqueeze(-1)
            if self.sink:
                seen = seen | (torch.arange(blocks, device=q.device) == 0)
        queries, keys = (_blocks(tokens, length, order, q.device) for length in sides)
        return seen, queries, keys


def hilbert_order(grid: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """The tokens of a map in the order of a Hilbert curve through the smallest enclosing square of side 2^k."""
    side = 1 << (max(grid) - 1).bit_length()
    y = torch.arange(grid[0], device=device)[:, None].expand(grid)
    x = torch.arange(grid[1], device=device).expand(grid)
    place = torch.zeros(grid, dtype=torch.long, device=device)
    half = side // 2
    while half:
        right, down = (x & half) > 0, (y & half) > 0
        place = place + half * half * (3 * right.long() ^ down.long())
        # The quarter is turned so that the curve enters and leaves it where its neighbours do.
        flipped = right & ~down
        x, y = torch.where(flipped, side - 1 - x, x), torch.where(flipped, side - 1 - y, y)
        x, y = torch.where(down, x, y), torch.where(down, y, x)
        half //= 2
    return place.flatten().argsort()


def _several(level: Level) -> tuple[float, ...]:
    return tuple(level) if isinstance(level, Sequence) else (level,)


def _level(level: Level, x: torch.Tensor) -> torch.Tensor:
    """A level to compare `(B, heads, blocks)` with."""
    return torch.tensor(_several(level), dtype=x.dtype, device=x.device).view(1, -1, 1)


def _pool(x: torch.Tensor, length: int, alike: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of blocks of tokens `(B, heads, blocks, d)`, and whether the tokens of each are similar."""
    tokens = x.size(2)
    parts = F.pad(x, (0, 0, 0, -tokens % length)).unflatten(2, (-1, length))
    blocks = torch.arange(parts.size(2), device=x.device)
    held = (tokens - length * blocks).clamp(max=length)
    # The mean cosine of all pairs is the squared length of the mean of the unit vectors.
    cosine = F.normalize(parts, dim=-1).mean(3).square().sum(-1)
    return parts.sum(3) / held.unsqueeze(-1).to(x.dtype), (cosine > alike) & (held == length)


def _blocks(tokens: int, length: int, order: torch.Tensor | None, device: torch.device) -> Blocks:
    rows = Blocks.rows(tokens, length, device)
    if order is None:
        return rows
    # Slots beyond the map keep their numbers.
    slots = torch.cat([order, torch.arange(tokens, rows.tokens.numel(), device=device)])
    return Blocks(rows.of_token[order.argsort()], slots.view(-1, length))
